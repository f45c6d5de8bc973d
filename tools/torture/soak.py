"""Thousands of predictions and evaluations in one process: its memory, descriptors and threads must not grow.

    python -m tools.torture.soak [--predictions 10000] [--evaluations 1000] [--seconds 1800] [--json FILE]

Most predictions go through one session that stays open, as in a service; a tenth open one each, as ``Bundle.predict`` does.
One in ten gets a file that is refused: errors must leave nothing behind either. Evaluations are made anew and from the cache in
turn. What a process holds is read every so often; what it holds at the end is compared with what it held after a fifth.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

READINGS: Final = 50  # of each kind of work
# Allocators keep what they once had, in pieces: RSS of the same work moves by some MiB. A leak of 2 kB a prediction is 20 MiB.
GROWTH_MIB: Final = 12.0


@dataclass(frozen=True)
class Held:
    """What this process holds."""

    memory_mib: float
    descriptors: int
    threads: int

    @classmethod
    def now(cls) -> Held:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208  (no paths are wanted)
        return cls(pages * resource.getpagesize() / 2**20, len(os.listdir("/proc/self/fd")), threads)  # noqa: PTH208


def soak(work: Callable[[int], object], count: int, until: float) -> dict[str, Any]:
    """``count`` pieces of work, or as many as there is time for, and what is held meanwhile."""
    readings: list[Held] = []
    began, done = time.perf_counter(), 0
    for number in range(count):
        if time.perf_counter() > until:
            break
        work(number)
        done += 1
        if done % max(1, count // READINGS) == 0:
            readings.append(Held.now())
    return {"done": done, "seconds": round(time.perf_counter() - began, 1), **growth(readings)}


def growth(readings: Sequence[Held]) -> dict[str, Any]:
    """The medians of a tenth of the readings each: after the first fifth, and at the end."""
    tenth = max(1, len(readings) // 10)
    early, late = readings[2 * tenth : 3 * tenth], readings[-tenth:]
    if not early:
        return {"faults": ["too few readings to compare"]}
    found: dict[str, Any] = {
        name: {
            "early": round(median(getattr(each, name) for each in early), 1),
            "late": round(median(getattr(each, name) for each in late), 1),
            "most": round(max(getattr(each, name) for each in readings), 1),
        }
        for name in asdict(early[0])
    }
    faults = [
        f"{name} grew from {each['early']:g} to {each['late']:g}"
        for name, each in found.items()
        if each["late"] - each["early"] > (GROWTH_MIB if name == "memory_mib" else 0)
    ]
    return {**found, "faults": faults}


def campaign(folder: Path, predictions: int, evaluations: int, seconds: float) -> dict[str, Any]:
    """Of a bundle and images that ``make_seeds`` made in ``folder``."""
    import skdeploy

    bundle = skdeploy.load_bundle(folder / "bundle")
    bad = folder / "bad.png"
    bad.write_bytes((folder / "image.png").read_bytes()[:100])
    until = time.perf_counter() + seconds

    def refused(predict: Callable[[Path], object], number: int, names: Sequence[str]) -> None:
        if number % 10:
            predict(folder / names[number % len(names)])
            return
        try:
            predict(bad)
        except skdeploy.errors.UsageError:
            return
        raise AssertionError(f"{bad} was not refused")

    images = ("image.png", "image.jpg", "image.tiff", "image.webp")
    found: dict[str, Any] = {}
    with bundle.session() as session:
        found["predictions through one session"] = soak(
            lambda number: refused(lambda path: session(bundle.preprocess(path)), number, images),
            predictions - predictions // 10,
            until,
        )
    found["predictions that open one each"] = soak(
        lambda number: refused(bundle.predict, number, images), predictions // 10, until
    )
    found["evaluations"] = soak(
        lambda number: bundle.evaluate(folder / "images.npz", progress=False, fresh=number % 2 == 0),
        evaluations,
        until,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=int, default=10_000)
    parser.add_argument("--evaluations", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=1800, help="no more work is begun after these")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    from benchmarks.machine import describe
    from tools.torture.readers import make_seeds

    with TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = f"{scratch}/cache"
        make_seeds(Path(scratch) / "seeds")
        found = campaign(Path(scratch) / "seeds", options.predictions, options.evaluations, options.seconds)
    print(json.dumps(found, indent=2))
    if options.json:
        text = json.dumps({"machine": describe(), "soak": found}, indent=2) + "\n"
        options.json.write_text(text, encoding="utf-8")
    wanted = {"predictions": options.predictions, "evaluations": options.evaluations}
    faults = [f"{name}: {fault}" for name, each in found.items() for fault in each["faults"]]
    for word, count in wanted.items():
        done = sum(each["done"] for name, each in found.items() if name.startswith(word))
        if done < count:
            faults.append(f"time for {done} of {count} {word} only")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()

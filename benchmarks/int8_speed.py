"""What calibration costs: SKNet-50 at 224 x 224, two threads, 32 and 512 images; wall time and peak memory of whole processes.

Everything is compared with bare inference: ONNX Runtime over the same images in batches of 8, in a process of its own just
before. ``ratio`` is a process against that process, start-up included; ``marginal_ratio`` is the same of the time that an
image more takes, between the two counts. Ours reads JPEG files, as a user has them; the others get the same pixels as an array
of network inputs, and quantize the graph after calibrating, which is little beside it. Calibration without the start of a
process: ``calibrate_alone.py``.

    python benchmarks/int8_speed.py [--counts 32 512] [--rounds 3] [--peers-only] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import PEERS_PYTHON, ROOT, SKDEPLOY, skdeploy

SCRIPTS: Final = ROOT / "benchmarks" / "peers"
THREADS: Final = 2
COUNTS: Final = (32, 512)
ROUNDS: Final = 1  # a round takes 9 minutes
POLL_SECONDS: Final = 0.02  # the high-water mark only grows: what grows in a process's last 20 ms is missed
LIMIT_SECONDS: Final = 1800
OUR_METHODS: Final = ("default", "minmax")
PEERS: Final = ("nncf default", "modelopt max default", "modelopt entropy default")
# Entropy calibrators may keep the activations of all images: two smaller counts tell whether this machine can take the largest
# one, and stand for it if not. ModelOpt 0.47 reads in chunks, 4.4 GB whatever the count; earlier ones grew with it.
GROWS: Final = "modelopt entropy default"
GROWTH_FROM: Final = (32, 128)
MEMORY_SHARE: Final = 0.8

PHOTOGRAPHS: Final = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "ihc.png")
SIZE: Final = 256  # what the card of sknet50 resizes to; then it crops
CROP: Final = 224
MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)

MINMAX_AT_MOST: Final = 1.4
DEFAULT_AT_MOST: Final = 2.5
OF_MODELOPT_ENTROPY_AT_MOST: Final = 0.35
PEAK_GB_AT_MOST: Final = 1.5
PEAK_GROWTH_MB_AT_MOST: Final = 150


@dataclass(frozen=True)
class Cost:
    """Of one process, its children included."""

    seconds: float
    peak_bytes: int


def prepare(folder: Path, count: int) -> tuple[Path, Path]:
    """``count`` crops of scikit-image's photographs: a folder of JPEG files, and the network inputs as an array."""
    from PIL import Image

    found = find_spec("skimage")
    if found is None or found.origin is None:
        raise SystemExit("scikit-image, whose photographs are calibrated on, is not installed")
    photographs = [Image.open(Path(found.origin).parent / "data" / name).convert("RGB") for name in PHOTOGRAPHS]
    images = folder / "images"
    images.mkdir()
    random = np.random.default_rng(0)
    inputs = np.lib.format.open_memmap(folder / "inputs.npy", "w+", np.float32, (count, 3, CROP, CROP))
    margin = (SIZE - CROP) // 2
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        side = int(random.integers(SIZE // 2, min(photograph.size) + 1))
        left, top = (int(random.integers(0, length - side + 1)) for length in photograph.size)
        file = images / f"{index:04}.jpg"
        photograph.crop((left, top, left + side, top + side)).resize((SIZE, SIZE)).save(file, quality=95)
        pixels = np.asarray(Image.open(file), np.float32)[margin : margin + CROP, margin : margin + CROP]
        inputs[index] = ((pixels / 255 - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1)
    inputs.flush()
    return images, folder / "inputs.npy"


def family(process: int) -> Iterator[int]:
    """The process and all below it that still run."""
    yield process
    for thread in Path(f"/proc/{process}/task").glob("*/children"):  # each thread may have started some
        try:
            children = thread.read_text().split()
        except OSError:  # it ended since
            continue
        for child in children:
            yield from family(int(child))


def kernel_figure(process: int, file: str, field: str) -> int:
    """Bytes that the kernel tells of a process; 0 of one that ended since: its last figure was taken before."""
    try:
        lines = Path(f"/proc/{process}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


def resident(process: int) -> int:
    """Peak bytes so far of a process, or, while it has children, of all of them now, what they share counted once."""
    members = list(family(process))
    together = sum(kernel_figure(member, "smaps_rollup", "Pss:") for member in members) if len(members) > 1 else 0
    return max(kernel_figure(process, "status", "VmHWM:"), together)


def cost_of(command: Sequence[str | Path]) -> Cost:
    """Runs a command on two cores, with two threads. It must succeed.

    Not ``ru_maxrss``: a process inherits its parent's.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "OPENBLAS_NUM_THREADS": str(THREADS)}
    cores = sorted(os.sched_getaffinity(0))[:THREADS]
    pinned = ["taskset", "--cpu-list", ",".join(map(str, cores)), *map(str, command)]  # execs: the same process
    peak = 0
    with TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen(pinned, stdout=log, stderr=subprocess.STDOUT, env=environment)
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            if time.perf_counter() - started > LIMIT_SECONDS:
                process.kill()
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - started
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(pinned)} ended with {process.returncode}:\n{log.read()[-4000:]}")
    return Cost(seconds, peak)


def commands(model: Path, images: Path, inputs: Path, folder: Path, with_ours: bool) -> dict[str, list[str | Path]]:
    """What is measured, by name; COUNT stands for the number of images."""
    result: dict[str, list[str | Path]] = {}
    for method in OUR_METHODS if with_ours else ():
        chosen = [] if method == "default" else ["--calib-method", method]
        calibrate: list[str | Path] = [SKDEPLOY, "calibrate", model.parent, "--calib", images, *chosen]
        result[f"skdeploy {method}"] = [*calibrate, "--calib-num", "COUNT", "-o", folder / "ranges-COUNT.json"]
    script = SCRIPTS / "calibrate.py"
    for recipe in PEERS:
        result[recipe] = [PEERS_PYTHON, script, recipe, model, inputs, "COUNT", folder / "quantized.onnx"]
    return result


def with_count(command: Sequence[str | Path], count: int) -> list[str]:
    return [str(part).replace("COUNT", str(count)) for part in command]


def extrapolate(points: dict[int, Cost], count: int) -> Cost:
    """The straight line through two measured counts."""
    (low, first), (high, second) = sorted(points.items())
    steps = (count - low) / (high - low)
    return Cost(
        first.seconds + steps * (second.seconds - first.seconds),
        round(first.peak_bytes + steps * (second.peak_bytes - first.peak_bytes)),
    )


def too_big(command: Sequence[str | Path], counts: Sequence[int]) -> dict[int, Cost]:
    """For the counts that this machine has no memory or time for: what two smaller ones tell. Empty if all can be run."""
    if max(counts) <= max(GROWTH_FROM):
        return {}
    points = {count: cost_of(with_count(command, count)) for count in GROWTH_FROM}
    memory = MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    told = {count: extrapolate(points, count) for count in counts if count > max(GROWTH_FROM)}
    return {count: cost for count, cost in told.items() if cost.peak_bytes > memory or cost.seconds > LIMIT_SECONDS}


def measure_count(
    jobs: dict[str, list[str | Path]], bare: list[str | Path], count: int, rounds: int, extrapolated: dict[int, Cost]
) -> dict[str, dict[str, Any]]:
    """Every job after a bare run of its own; medians over the rounds, and the median of the ratios."""
    costs: dict[str, list[Cost]] = {name: [] for name in jobs}
    befores: dict[str, list[Cost]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, command in jobs.items():
            befores[name].append(cost_of(with_count(bare, count)))
            guess = extrapolated.get(count) if name == GROWS else None
            costs[name].append(guess or cost_of(with_count(command, count)))
    every = [before for name in jobs for before in befores[name]]
    results: dict[str, dict[str, Any]] = {"bare": _summary(every, [cost.seconds for cost in every])}
    for name in jobs:
        results[name] = _summary(costs[name], [before.seconds for before in befores[name]])
        if name == GROWS:
            results[name]["extrapolated"] = count in extrapolated
    return results


def _summary(costs: list[Cost], bare_seconds: list[float]) -> dict[str, Any]:
    return {
        "seconds": round(statistics.median(cost.seconds for cost in costs), 2),
        "ratio": round(statistics.median(c.seconds / b for c, b in zip(costs, bare_seconds, strict=True)), 3),
        "peak_gb": round(max(cost.peak_bytes for cost in costs) / 1e9, 3),
    }


def targets(results: dict[int, dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The figures of issue 4, at the largest count."""
    few, many = results[min(results)], results[max(results)]
    ours, minmax = many["skdeploy default"], many["skdeploy minmax"]

    def judged(value: float, at_most: float) -> dict[str, Any]:
        return {"value": round(value, 3), "at_most": at_most, "reached": value <= at_most}

    growth = 1000 * (ours["peak_gb"] - few["skdeploy default"]["peak_gb"])
    more = marginal(results) if len(results) > 1 else {}
    by_image = {
        f"{name}_to_bare_an_image_more": judged(more[f"skdeploy {name}"]["marginal_ratio"], at_most)
        for name, at_most in (("minmax", MINMAX_AT_MOST), ("default", DEFAULT_AT_MOST))
        if more
    }
    return {
        **by_image,
        "minmax_to_bare": judged(minmax["ratio"], MINMAX_AT_MOST),
        "default_to_bare": judged(ours["ratio"], DEFAULT_AT_MOST),
        "default_to_nncf": judged(ours["seconds"] / many["nncf default"]["seconds"], 1.0),
        "default_to_modelopt_entropy": judged(ours["seconds"] / many[GROWS]["seconds"], OF_MODELOPT_ENTROPY_AT_MOST),
        "default_peak_gb": judged(ours["peak_gb"], PEAK_GB_AT_MOST),
        "default_peak_growth_mb": judged(growth, PEAK_GROWTH_MB_AT_MOST),
    }


def marginal(results: dict[int, dict[str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Milliseconds that an image more takes, and their ratio to bare inference's; start-up drops out."""
    low, high = min(results), max(results)
    per_image = {
        name: 1000 * (results[high][name]["seconds"] - results[low][name]["seconds"]) / (high - low)
        for name in results[high]
    }
    return {
        name: {"ms_per_image": round(value, 2), "marginal_ratio": round(value / per_image["bare"], 3)}
        for name, value in per_image.items()
    }


def measure(counts: Sequence[int] = COUNTS, rounds: int = ROUNDS, with_ours: bool = True) -> dict[str, object]:
    """Seconds, ratios to bare inference and peaks, for each count of images, and the targets."""
    if not PEERS_PYTHON.exists():
        raise SystemExit(f"{PEERS_PYTHON} is not there: run `make peers`")
    with TemporaryDirectory() as name:
        folder = Path(name)
        images, inputs = prepare(folder, max([*counts, *GROWTH_FROM]))
        skdeploy("export", "sknet50", "--target", "onnx", "-o", folder / "fp32")
        model = folder / "fp32" / "model.onnx"
        jobs = commands(model, images, inputs, folder, with_ours)
        bare: list[str | Path] = [sys.executable, SCRIPTS / "bare.py", model, inputs, "COUNT"]
        extrapolated = too_big(jobs[GROWS], counts)
        results = {count: measure_count(jobs, bare, count, rounds, extrapolated) for count in counts}
    return {
        "threads": THREADS,
        "rounds": rounds,
        "extrapolated_from": list(GROWTH_FROM) if extrapolated else [],
        "images": {str(count): result for count, result in results.items()},
        "an_image_more": marginal(results) if len(results) > 1 else {},
        "targets": targets(results) if with_ours else {},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--peers-only", action="store_true")
    parser.add_argument("--json", type=Path, help="write the results here too")
    options = parser.parse_args()
    results = measure(options.counts, options.rounds, not options.peers_only)
    print(json.dumps(results, indent=2))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

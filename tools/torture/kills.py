"""Runs ended at a random moment by KILL, TERM or INT, and run again: nothing is half-written, lost or another than before.

    python -m tools.torture.kills [--kills 300] [--seed N] [--verb VERB ...] [--json FILE]

Each verb is run once to its end first, for the digests of all that it writes and for how long it takes. After a kill the bundle
must be valid, the exit code the signal's, and nothing on stderr a traceback; the same command again must end well, with the
same digests, and leave no partial file. The JSON grows by the kill, and a campaign that is stopped goes on from it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, Final

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import SKDEPLOY
from skdeploy.bundle.folder import load_bundle
from skdeploy.core.errors import SkdeployError
from tools.torture.readers import make_seeds
from tools.torture.record import Record

WEIGHTS: Final = ("--weights", "weights.safetensors")
INT8: Final = ("--int8", "--calib", "images.npz", "--images", "images.npz", "--exporter", "torchscript")
DATA: Final = ("--data", "images.npz")
VERBS: Final[dict[str, tuple[str, ...]]] = {
    "export": ("export", "tiny.toml", *WEIGHTS, *INT8, "--target", "tensorrt_rtx", "-o", "made"),
    "build": ("build", "bundle", "--target", "tensorrt_rtx"),
    "calibrate": ("calibrate", "bundle", "--calib", "images.npz", "-o", "ranges.json"),
    "evaluate": ("evaluate", "bundle", *DATA, "--save-baseline", "again.json"),
    "sensitivity": ("sensitivity", "bundle", *DATA),
    "tune": (
        *("tune", "bundle", *DATA, "--calib", "calib.npz", "--calib-method", "minmax", "--calib-method", "mse"),
        *("--max-drop", "50", "--allow-inconclusive", "-o", "tuned.toml", "--force"),
    ),
    "attention": ("attention", "bundle", *DATA, "--num-images", "4"),
}
SIGNALS: Final = {
    signal.SIGKILL: (-signal.SIGKILL,),
    signal.SIGTERM: (-signal.SIGTERM, 143),
    signal.SIGINT: (-signal.SIGINT, 130),
}
COMPARED: Final = (".onnx", ".safetensors", ".engine", ".toml")  # reports hold times


@dataclass
class Found:
    """Of one verb. ``seconds`` is how long a whole run takes; ``runs`` some of which ended before the signal, and the others
    are ``kills``; ``ended`` counts signals and exit codes of these.
    """

    seconds: float = 0.0
    runs: int = 0
    kills: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Found:
        return cls(kept["seconds"], kept["runs"], kept["kills"], Counter(kept["ended"]), list(kept["faults"]))

    def kept(self) -> dict[str, Any]:
        ended = dict(sorted(self.ended.items()))
        return {
            "seconds": round(self.seconds, 1),
            "runs": self.runs,
            "kills": self.kills,
            "ended": ended,
            "faults": self.faults,
        }


def make_start(folder: Path) -> None:
    """What every run begins with: a bundle, and images, weights and a card beside it."""
    make_seeds(folder)
    (folder / "skdeploy.toml").unlink()  # its options would apply
    shutil.copy(folder / "bundle/weights.safetensors", folder)
    pixels = np.random.default_rng(1).integers(0, 256, (16, 40, 44, 3), dtype=np.uint8)
    np.savez(folder / "calib.npz", images=pixels)  # those of tune judge nothing


def run(
    folder: Path, command: tuple[str, ...], kill_after: float | None = None, with_: int = 0
) -> tuple[int, str, bool]:
    """The exit code and stderr of a command, and whether it ran long enough to get the signal, after ``kill_after`` seconds."""
    killed = False
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "200"}
    with subprocess.Popen(
        [SKDEPLOY, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        if kill_after is not None:
            try:
                process.wait(kill_after)
            except subprocess.TimeoutExpired:
                process.send_signal(with_)
                killed = True
        said = process.communicate()[1]
        return process.returncode, said, killed


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that must be the same in every run. Of an engine only that it is there: no two builds have the
    same bytes.
    """
    found = {}
    for path in sorted(each for each in folder.rglob("*") if each.suffix in COMPARED):
        content = b"" if path.suffix == ".engine" else path.read_bytes()
        found[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def broken(folder: Path) -> str:
    """The first bundle below a folder that is not valid; those that are not there yet are."""
    for manifest in folder.glob("*/manifest.json"):
        try:
            load_bundle(manifest.parent).check_all()
        except SkdeployError as error:
            return error.message
    return ""


@dataclass
class Campaign:
    """Runs of verbs, each in a copy of ``start``, each with a random signal at a random moment. Several threads share it."""

    start: Path
    seed: int
    found: dict[str, Found]
    save: Callable[[], None]
    undisturbed: dict[str, dict[str, str]] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def measure(self, name: str) -> None:
        """How long the verb takes, and what it writes."""
        folder = self.start.with_name(name)
        shutil.copytree(self.start, folder)
        began = time.perf_counter()
        code, said, _ = run(folder, VERBS[name])
        if code:
            raise RuntimeError(f"{name} fails without a kill: {said}")
        self.found[name].seconds, self.undisturbed[name] = time.perf_counter() - began, digests(folder)
        shutil.rmtree(folder)

    def kill(self, name: str) -> None:
        """One run that is ended by a signal: of those that end before it, another is tried."""
        found, killed = self.found[name], False
        while not killed:
            with self.lock:
                number, found.runs = found.runs, found.runs + 1
            folder = self.start.with_name(f"{name}-{number}")
            shutil.copytree(self.start, folder)
            random = Random(f"{self.seed}/{name}/{number}")
            asked, after = random.choice(list(SIGNALS)), random.uniform(0, found.seconds)
            code, said, killed = run(folder, VERBS[name], after, asked)
            if killed:
                faults = self._after(folder, name, code, said, asked)
                with self.lock:
                    where = f"{name} {number}, {signal.Signals(asked).name} after {after:.2f} s"
                    found.faults += [f"{where}: {fault}" for fault in faults]
                    found.ended[f"{signal.Signals(asked).name} {code}"] += 1
                    found.kills += 1
                    self.save()
            shutil.rmtree(folder)

    def _after(self, folder: Path, name: str, code: int, said: str, asked: signal.Signals) -> list[str]:
        """What is wrong after a kill."""
        faults = []
        if code not in (0, *SIGNALS[asked]):
            faults.append(f"exit code {code}: {said.strip()[-300:]}")
        if "Traceback" in said and "in main\n" in said:  # else it is Python's own, while it begins
            faults.append(f"a traceback: {said.strip().splitlines()[-1]}")
        if problem := broken(folder):
            faults.append(problem)
        code, said, _ = run(folder, VERBS[name])
        if code:
            faults.append(f"run again, it ends with {code}: {said.strip()[-300:]}")
        elif digests(folder) != self.undisturbed[name]:
            faults.append("run again, other files than without a kill")
        if left := [path.name for path in folder.rglob("*.partial")]:
            faults.append(f"{left[0]} is left")
        return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verb", action="append", choices=list(VERBS), help="only these")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the counts here too, and go on from those of the same seed")
    options = parser.parse_args()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job ignores Ctrl-C, and so would its runs
    names = options.verb or list(VERBS)
    record = Record(options.json, "kills", itemgetter("kills"), options.seed)
    kept = {name: Found.of(each) for name, each in record.found.get("verbs", {}).items()}
    found = {name: kept.get(name, Found()) for name in (*kept, *names)}
    each = -(-options.kills // len(names))

    def result() -> dict[str, Any]:
        verbs = {name: found[name].kept() for name in VERBS if name in found}
        return {"kills": sum(run.kills for run in found.values()), "verbs": verbs}

    def save() -> None:
        record.save(result())

    with TemporaryDirectory() as scratch:
        start = Path(scratch) / "start"
        make_start(start)
        campaign = Campaign(start, options.seed, found, save)
        with ThreadPoolExecutor(options.processes) as pool:
            list(pool.map(campaign.measure, names))
            turns = [name for turn in range(each) for name in names if found[name].kills <= turn]
            list(pool.map(campaign.kill, turns))
    print(json.dumps(result(), indent=2))
    if failed := sum(len(run.faults) for run in found.values()):
        sys.exit(f"{failed} faults")


if __name__ == "__main__":
    main()

"""Runs ended at a random moment by KILL, TERM or INT, and run again: nothing is half-written, lost or another than before.

    python -m tools.torture.kills [--kills 300] [--seed N] [--verb VERB ...] [--json FILE]

Each verb is run once to its end first, for the digests of all that it writes and for how long it takes. After a kill the bundle
must be valid, the exit code the signal's, and nothing on stderr a traceback; the same command again must end well, with the
same digests, and leave no partial file.
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
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import SKDEPLOY, describe
from skdeploy.bundle.folder import load_bundle
from skdeploy.core.errors import SkdeployError
from tools.torture.readers import make_seeds

WEIGHTS: Final = ("--weights", "weights.safetensors")
INT8: Final = ("--int8", "--calib", "images.npz", "--images", "images.npz", "--exporter", "torchscript")
DATA: Final = ("--data", "images.npz")
VERBS: Final[dict[str, tuple[str, ...]]] = {
    "export": ("export", "tiny.toml", *WEIGHTS, *INT8, "--target", "tensorrt_rtx", "-o", "made"),
    "build": ("build", "bundle", "--target", "tensorrt_rtx"),
    "calibrate": ("calibrate", "bundle", "--calib", "images.npz", "-o", "ranges.json"),
    "evaluate": ("evaluate", "bundle", *DATA, "--save-baseline", "again.json"),
    "sensitivity": ("sensitivity", "bundle", *DATA),
    "attention": ("attention", "bundle", *DATA, "--num-images", "4"),
}
SIGNALS: Final = {
    signal.SIGKILL: (-signal.SIGKILL,),
    signal.SIGTERM: (-signal.SIGTERM, 143),
    signal.SIGINT: (-signal.SIGINT, 130),
}
COMPARED: Final = (".onnx", ".safetensors", ".engine")  # reports hold times


@dataclass
class Found:
    """Of one verb. ``seconds`` is how long a whole run takes; ``ended`` counts signals and exit codes."""

    seconds: float
    digests: dict[str, str]
    ended: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def run(folder: Path, command: tuple[str, ...], kill_after: float | None = None, with_: int = 0) -> tuple[int, str]:
    """The exit code and stderr of a command, ended by a signal after some seconds if it runs that long."""
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
        said = process.communicate()[1]
        return process.returncode, said


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


def torture(start: Path, scratch: Path, name: str, kills: int, random: Random) -> Found:
    """``kills`` runs of one verb, each in a copy of ``start``, each with a random signal at a random moment."""
    command, folder = VERBS[name], scratch / name
    shutil.copytree(start, folder)
    began = time.perf_counter()
    code, said = run(folder, command)
    if code:
        raise RuntimeError(f"{name} fails without a kill: {said}")
    found = Found(time.perf_counter() - began, digests(folder))
    shutil.rmtree(folder)
    for number in range(kills):
        shutil.copytree(start, folder)
        asked, after = random.choice(list(SIGNALS)), random.uniform(0, found.seconds)
        code, said = run(folder, command, after, asked)
        found.ended[f"{signal.Signals(asked).name} {code}"] += 1
        where = f"{name} {number}, {signal.Signals(asked).name} after {after:.2f} s"
        if code not in (0, *SIGNALS[asked]):
            found.faults.append(f"{where}: exit code {code}")
        if "Traceback" in said and "in main\n" in said:  # else it is Python's own, while it begins
            found.faults.append(f"{where}: a traceback: {said.strip().splitlines()[-1]}")
        if problem := broken(folder):
            found.faults.append(f"{where}: {problem}")
        code, said = run(folder, command)
        if code:
            found.faults.append(f"{where}: run again, it ends with {code}: {said.strip()[-300:]}")
        elif digests(folder) != found.digests:
            found.faults.append(f"{where}: run again, other files than without a kill")
        if left := [path.name for path in folder.rglob("*.partial")]:
            found.faults.append(f"{where}: {left[0]} is left")
        shutil.rmtree(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verb", action="append", choices=list(VERBS), help="only these")
    parser.add_argument("--json", type=Path, help="write the counts here too")
    options = parser.parse_args()
    names, random = options.verb or list(VERBS), Random(options.seed)
    found: dict[str, Any] = {}
    with TemporaryDirectory() as scratch:
        start = Path(scratch) / "start"
        make_seeds(start)
        (start / "skdeploy.toml").unlink()  # its options would apply
        shutil.copy(start / "bundle/weights.safetensors", start)
        for name in names:
            done = torture(start, Path(scratch), name, -(-options.kills // len(names)), random)
            found[name] = {
                "seconds": round(done.seconds, 1),
                "ended": dict(sorted(done.ended.items())),
                "faults": done.faults,
            }
            print(json.dumps({name: found[name]}, indent=2), flush=True)
    if options.json:
        result = {"machine": describe(), "kills": {"seed": options.seed, "verbs": found}}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if failed := sum(len(each["faults"]) for each in found.values()):
        sys.exit(f"{failed} faults")


if __name__ == "__main__":
    main()

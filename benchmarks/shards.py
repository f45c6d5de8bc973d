"""What dividing an evaluation costs and gains on this machine, and whether killed workers change a bit.

python benchmarks/shards.py [--kills N] [--seconds S]

1. SKNet-26 on images of 224 x 224: images a second of one run on one thread, of one worker and of two, of one thread each,
   from the first line to the verdict. The rounds are interleaved, and the figures are medians.
With --kills N: N evaluations of a small network by two workers, in each of which a worker is killed by SIGKILL at a random
moment, also while it starts. Each result is compared with that of one run. Writes results/shard_kills.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import ROOT, SKDEPLOY, describe, skdeploy
from skdeploy.accuracy.evaluate import EvaluationOptions, evaluate
from skdeploy.accuracy.evaluate_cluster import evaluate_on
from skdeploy.core import cpu
from skdeploy.core.progress import Silent
from skdeploy.shards.cluster import Cluster

KILLS: Final = Path(__file__).parent / "results" / "shard_kills.json"
IMAGES: Final = 256
SMALL_IMAGES: Final = 1000  # 16 shards
ROUNDS: Final = 3
SEED: Final = 16
FIRST_LENGTH: Final = 12.0  # seconds of a run, until some have shown how long they take
RUN_SECONDS: Final = 1500  # other work on the machine may stop this one for minutes
CHANGING: Final = ("seconds", "reused")  # of a result: the rest is equal in every bit


def labelled(folder: Path, count: int, side: int, channels: int, classes: int) -> Path:
    """Noise around a colour, with random labels: what is computed does not depend on what is seen."""
    numbers = np.random.default_rng(0)
    colour = numbers.integers(0, 256, (count, 1, 1, channels))
    images = np.clip(colour + numbers.integers(-60, 60, (count, side, side, channels)), 0, 255).astype(np.uint8)
    path = folder / "evaluation.npz"
    np.savez(path, images=images if channels > 1 else images[..., 0], labels=numbers.integers(0, classes, count))
    return path


def measure() -> dict[str, Any]:
    """The figures for results/shards.json."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        return throughput(Path(name) / "throughput")


def throughput(folder: Path) -> dict[str, Any]:
    """Images a second by one run on one thread, one worker and two workers."""
    folder.mkdir()
    bundle = folder / "sknet26"
    skdeploy("export", "sknet26", "--seed", "0", "--target", "onnx", "-o", bundle)
    options = EvaluationOptions(labelled(folder, IMAGES, 224, 3, 1000), artifacts=("model.onnx",), batch=8, fresh=True)
    seconds: dict[str, list[float]] = {"one run": [], "1 worker": [], "2 workers": []}
    for _ in range(ROUNDS):
        for name, times in seconds.items():
            started = time.perf_counter()
            if name == "one run":
                with cpu.limited(1):
                    evaluate(bundle, options)
            else:
                evaluate_on(bundle, options, Silent(), cluster=Cluster(workers=int(name[0])))
            times.append(time.perf_counter() - started)
    rate = {name: IMAGES / statistics.median(times) for name, times in seconds.items()}
    return {
        "network": "sknet26, FP32, 224 x 224, ONNX Runtime",
        "images": IMAGES,
        "seconds": {name: [round(each, 2) for each in times] for name, times in seconds.items()},
        "images_a_second": {name: round(value, 2) for name, value in rate.items()},
        "two_workers_to_one": round(rate["2 workers"] / rate["1 worker"], 3),
        "overhead_of_one_worker_percent": round(100 * (rate["one run"] / rate["1 worker"] - 1), 1),
    }


def campaign(folder: Path, runs: int, seconds: float) -> dict[str, Any]:
    """Evaluations in each of which a worker is killed by SIGKILL at a random moment of its life, against one run.

    The result so far is written after each, whole.
    """
    bundle = folder / "fashion"
    skdeploy("export", "sknet-fashion", "--fp16", "--target", "onnx", "-o", bundle)
    data = labelled(folder, SMALL_IMAGES, 28, 1, 10)
    command = ["evaluate", str(bundle), "--data", str(data), "--json"]
    expected = figures(skdeploy(*command))
    chance = random.Random(SEED)
    found: dict[str, Any] = {"runs": 0, "killed_workers": 0, "right_results": 0, "errors": []}
    moments: list[float] = []
    length, begun, commit = FIRST_LENGTH, time.perf_counter(), tree()
    while found["runs"] < runs and time.perf_counter() - begun < seconds:
        outcome, moment, took = killed_once([SKDEPLOY, *command, "--workers", "2", "--fresh"], expected, chance, length)
        length += (min(took, 3 * length) - length) / 4  # of a run, for the moments: the machine may be busy
        found["runs"] += 1
        if moment is not None:
            found["killed_workers"] += 1
            moments.append(round(moment, 1))
        if outcome:
            found["errors"].append({"run": found["runs"], "killed_after_s": moment, "reason": outcome})
        else:
            found["right_results"] += 1
        found["killed_after_s"] = sorted(moments)
        result = {"machine": describe(), "tree": commit, "seed": SEED, "kills": found}
        KILLS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(found["runs"], found["right_results"], moment, outcome, flush=True)
    return found


def killed_once(
    command: Sequence[object], expected: Mapping[str, Any], chance: random.Random, length: float
) -> tuple[str, float | None, float]:
    """One run: why its result is wrong, if it is; when a worker was killed, None if it ended before; its seconds."""
    started = time.perf_counter()
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    moment, killed = chance.uniform(0, length), None
    while process.poll() is None and killed is None:
        victims = workers_of(process.pid) if time.perf_counter() - started > moment else []
        if victims:
            chance.choice(victims).kill()
            killed = round(time.perf_counter() - started, 2)
        time.sleep(0.02)
    try:
        out, err = process.communicate(timeout=RUN_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"it did not end within {RUN_SECONDS} s", killed, time.perf_counter() - started
    took = time.perf_counter() - started
    if process.returncode:
        return f"exit code {process.returncode}: {reason_of(err)}", killed, took
    return "" if figures(out) == expected else "another result", killed, took


def reason_of(text: str) -> str:
    """The line of an error that says it, without any path."""
    lines = [line for line in text.splitlines() if line.strip()]
    told = next((line for line in lines if line.startswith("error")), lines[-1] if lines else "nothing was printed")
    return re.sub(r"(/[\w.+-]+)+/?", "PATH", told)[:200]


def tree() -> str:
    """The commit of the code, and whether it was changed."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return commit.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes of a run."""
    try:
        children = psutil.Process(pid).children(recursive=True)
        return [child for child in children if any("spawn_main" in word for word in child.cmdline())]
    except psutil.NoSuchProcess:
        return []


def figures(text: str) -> dict[str, Any]:
    """A result but for its times."""
    return {key: value for key, value in json.loads(text).items() if key not in CHANGING}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, metavar="N", help="kill workers in N evaluations instead of measuring")
    parser.add_argument("--seconds", type=float, default=3600, help="begin no further evaluation after this")
    given = parser.parse_args()
    if given.kills is None:
        print(json.dumps(measure(), indent=2))
        return
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        found = campaign(Path(name), given.kills, given.seconds)
    if found["right_results"] != found["runs"]:
        sys.exit("some results were wrong")


if __name__ == "__main__":
    main()

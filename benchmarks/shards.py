"""What dividing an evaluation costs and gains on this machine, and whether killed workers change a bit.

python benchmarks/shards.py [--kills N] [--seconds S]

1. SKNet-26 on images of 224 x 224: images a second of one run on one thread, of one worker and of two, of one thread each,
   from the first line to the verdict. The rounds are interleaved, and the figures are medians.
2. N evaluations of a small network by two workers, in each of which a worker is killed by SIGKILL at a random moment, for at
   most S seconds: each result against that of one run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from benchmarks.machine import SKDEPLOY, describe, skdeploy
from skdeploy.accuracy.evaluate import EvaluationOptions, evaluate
from skdeploy.accuracy.evaluate_cluster import evaluate_on
from skdeploy.core import cpu
from skdeploy.core.progress import Silent
from skdeploy.shards.cluster import Cluster

RESULT: Final = Path(__file__).parent / "results" / "shards.json"
IMAGES: Final = 256
SMALL_IMAGES: Final = 3000
ROUNDS: Final = 3
CHANGING: Final = ("seconds", "reused")  # of a result: the rest is equal in every bit


def labelled(folder: Path, count: int, side: int, channels: int, classes: int) -> Path:
    """Noise around a colour, with random labels: what is computed does not depend on what is seen."""
    numbers = np.random.default_rng(0)
    colour = numbers.integers(0, 256, (count, 1, 1, channels))
    images = np.clip(colour + numbers.integers(-60, 60, (count, side, side, channels)), 0, 255).astype(np.uint8)
    path = folder / "evaluation.npz"
    np.savez(path, images=images if channels > 1 else images[..., 0], labels=numbers.integers(0, classes, count))
    return path


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


def killed(folder: Path, most: int, limit_seconds: float) -> dict[str, Any]:
    """How many evaluations in which a worker was killed gave the right result."""
    folder.mkdir()
    bundle = folder / "fashion"
    skdeploy("export", "sknet-fashion", "--fp16", "--target", "onnx", "-o", bundle)
    data = labelled(folder, SMALL_IMAGES, 28, 1, 10)
    command = ["evaluate", str(bundle), "--data", str(data), "--json"]
    started = time.perf_counter()
    expected = figures(skdeploy(*command))
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    right = kills = 0
    wrong: list[str] = []
    begun = time.perf_counter()
    length = 2 * (begun - started)  # of a run, for the moments
    for _ in range(most):
        if time.perf_counter() - begun > limit_seconds:
            break
        process = subprocess.Popen(
            [SKDEPLOY, *command, "--workers", "2", "--fresh"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        run_started = time.perf_counter()
        moment = random.uniform(1.0, length)
        victims: list[psutil.Process] = []
        while process.poll() is None and not (victims and time.perf_counter() - run_started > moment):
            victims = workers_of(process.pid)
            time.sleep(0.02)
        if process.poll() is None and victims:
            random.choice(victims).kill()
            kills += 1
        out, err = process.communicate(timeout=300)
        length = 0.5 * (length + time.perf_counter() - run_started)
        if process.returncode == 0 and figures(out) == expected:
            right += 1
        else:
            wrong.append(err[-500:])
    return {"runs": right + len(wrong), "killed_workers": kills, "right_results": right, "wrong": wrong}


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
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, default=100)
    arguments.add_argument("--seconds", type=float, default=240)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        found = {
            "machine": describe(),
            "throughput": throughput(Path(name) / "throughput"),
            "kills": killed(Path(name) / "kills", given.kills, given.seconds),
        }
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))
    if found["kills"]["wrong"]:
        sys.exit("some results were wrong")


if __name__ == "__main__":
    main()

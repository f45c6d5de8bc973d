"""Measures what dividing an evaluation costs and gains on this machine, and whether killed workers change a bit.

python benchmarks/shards.py [--kills N] [--seconds S]

SKNet-26 on images of 224 x 224: the seconds of one worker and of two, of one thread each, from the first line to the verdict,
beside one run on one thread. The rounds are interleaved, and the figures are means. A model is fitted to six of them, and
compared with three others. run.py writes results/shards.json.

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
FITTED: Final = tuple((images, workers) for images in (64, 256, 512) for workers in (1, 2))
UNSEEN: Final = ((1024, 1), (1024, 2), (384, 2), (2048, 1), (2048, 2))
ONE_FILE: Final = 1024  # images; a larger set has a file of its own, since each process reads its file whole
ALONE: Final = 512  # images of one run without workers
SMALL_IMAGES: Final = 1000  # 32 shards
ROUNDS: Final = 2
SEED: Final = 16
FIRST_LENGTH: Final = 12.0  # seconds of a run, until some have shown how long they take
RUN_SECONDS: Final = 1500  # other work on the machine may stop this one for minutes
CHANGING: Final = ("seconds", "reused")  # of a result: the rest is equal in every bit


def labelled(folder: Path, count: int, side: int, channels: int, classes: int) -> Path:
    """Noise around a colour, with random labels: what is computed does not depend on what is seen."""
    numbers = np.random.default_rng(0)
    colour = numbers.integers(0, 256, (count, 1, 1, channels), np.int16)
    noise = numbers.integers(-60, 60, (count, side, side, channels), np.int16)
    images = np.clip(colour + noise, 0, 255).astype(np.uint8)
    path = folder / "evaluation.npz"
    np.savez(path, images=images if channels > 1 else images[..., 0], labels=numbers.integers(0, classes, count))
    return path


def measure() -> dict[str, Any]:
    """The figures for results/shards.json."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        return {"tree": tree(), **throughput(Path(name) / "throughput")}


def throughput(folder: Path) -> dict[str, Any]:
    """Seconds of evaluations by workers, and a model of them with its error on sizes that it was not fitted to."""
    folder.mkdir()
    bundle = folder / "sknet26"
    skdeploy("export", "sknet26", "--seed", "0", "--target", "onnx", "-o", bundle)
    files: dict[int, Path] = {}

    def timed(images: int, workers: int | None) -> float:
        stored = max(images, ONE_FILE)
        if stored not in files:
            (folder / str(stored)).mkdir()
            files[stored] = labelled(folder / str(stored), stored, 224, 3, 1000)
        options = EvaluationOptions(files[stored], num_images=images, artifacts=("model.onnx",), batch=8, fresh=True)
        started = time.perf_counter()
        if workers is None:
            with cpu.limited(1):
                evaluate(bundle, options)
        else:
            evaluate_on(bundle, options, Silent(), cluster=Cluster(workers=workers))
        return time.perf_counter() - started

    seconds: dict[tuple[int, int | None], list[float]] = {point: [] for point in (*FITTED, (ALONE, None))}
    for _ in range(ROUNDS):
        for point, times in seconds.items():
            times.append(timed(*point))
    found = {point: statistics.mean(times) for point, times in seconds.items()}
    unseen = {point: timed(*point) for point in UNSEEN}
    fixed, each = fitted({point: found[point] for point in FITTED})
    return {
        "network": "sknet26, FP32, 224 x 224, ONNX Runtime, batches of 8; workers of one thread",
        "rounds": ROUNDS,
        "one_run_on_one_thread": {"images": ALONE, "seconds": round(found[ALONE, None], 2)},
        "fitted_to": [shown(point, found[point], fixed + each * point[0] / point[1]) for point in FITTED],
        "not_fitted_to": [shown(point, took, fixed + each * point[0] / point[1]) for point, took in unseen.items()],
        "model": {"seconds_fixed": round(fixed, 2), "seconds_an_image": round(each, 4)},
        "two_workers_to_one": {
            str(images): round(found[images, 1] / found[images, 2], 3) for images in sorted({at for at, _ in FITTED})
        }
        | {str(images): round(unseen[images, 1] / unseen[images, 2], 3) for images, workers in UNSEEN if workers == 1},
        "overhead_of_one_worker_percent": round(100 * (found[ALONE, 1] / found[ALONE, None] - 1), 1),
    }


def fitted(seconds: Mapping[tuple[int, int], float]) -> tuple[float, float]:
    """F and E of seconds = F + E * images / workers, by least squares of the relative errors."""
    times = np.array(list(seconds.values()))
    columns = np.array([[1.0, images / workers] for images, workers in seconds])
    solution = np.linalg.lstsq(columns / times[:, None], np.ones(len(times)), rcond=None)[0]
    return float(solution[0]), float(solution[1])


def shown(point: tuple[int, int], took: float, predicted: float) -> dict[str, Any]:
    """A measured point beside the model's."""
    return {
        "images": point[0],
        "workers": point[1],
        "seconds": round(took, 2),
        "model_seconds": round(predicted, 2),
        "model_error_percent": round(100 * (predicted / took - 1), 1),
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
    """The worker processes of a run: children of its fork server."""
    try:
        servers = [child for child in psutil.Process(pid).children() if "forkserver" in " ".join(child.cmdline())]
        return [worker for server in servers for worker in server.children()]
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

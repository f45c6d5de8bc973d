"""Whether ``skdeploy bench`` repeats itself on an idle machine: several runs of the whole command, the spread of their medians.

A virtual machine is not told that a neighbour keeps the other half of its cores busy: clocks and steal time stay as they are,
and all takes longer. So a fixed computation that has nothing to do with skdeploy is timed before and after each run. A run is
one on an idle machine if that took as long as ever both times, and bench itself warned of nothing. The result has all runs.

python benchmarks/run.py bench_repeat
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from benchmarks.machine import skdeploy

CASES: Final = (("sknet50", 1), ("sknet-fashion", 1), ("sknet-fashion", 8))
ROUNDS: Final = 10
SECONDS: Final = 5
WITHIN: Final = 0.03  # issue 6: of the median of the runs on an idle machine, the farthest of them included
IDLE: Final = 0.05  # by so much the computation may be slower than at its fastest: in quiet minutes it is within 0.03
PRODUCTS: Final = 40
SIDE: Final = 1024


@dataclass(frozen=True)
class Run:
    """One run's p50, and the slower of the computations before and after it, both in ms; what bench warned of."""

    p50_ms: float
    computation_ms: float
    warnings: list[str]


def measure(rounds: int = ROUNDS, seconds: float = SECONDS) -> dict[str, object]:
    """p50 of every run, which of them were on an idle machine, and how far the farthest of these is from their median."""
    runs: dict[str, list[Run]] = {}
    with TemporaryDirectory() as name:
        for card in dict(CASES):
            skdeploy("export", card, "--target", "onnx", "--output", str(Path(name) / card))
        before = fixed_computation()
        for _ in range(rounds):  # in turn, so that a drift of the machine is seen by all
            for card, batch in CASES:
                report = json.loads(
                    skdeploy(
                        "bench", str(Path(name) / card), "--backend", "onnxruntime", "--batch", str(batch),
                        "--seconds", str(seconds), "--json",
                    )
                )  # fmt: skip
                after = fixed_computation()
                latency = report["measured"][0]["latency"]
                (row,) = latency["batches"]
                run = Run(row["host_ms"]["p50"], max(before, after), latency["machine"]["warnings"])
                runs.setdefault(f"{card} fp32 batch {batch}", []).append(run)
                before = after
    fastest = min(run.computation_ms for case in runs.values() for run in case)
    return {
        "rounds": rounds,
        "seconds": seconds,
        "computation": f"median of {PRODUCTS} products of float32 matrices of {SIDE} x {SIDE} in numpy, on all cores",
        "idle_within": IDLE,
        "cases": {name: _case(case, (1 + IDLE) * fastest) for name, case in runs.items()},
    }


def _case(runs: list[Run], idle_ms: float) -> dict[str, Any]:
    is_idle = [run.computation_ms <= idle_ms and not run.warnings for run in runs]
    idle = [run.p50_ms for run, good in zip(runs, is_idle, strict=True) if good]
    spread = farthest(idle) if len(idle) > 2 else None
    return {
        "p50_ms": [round(run.p50_ms, 4) for run in runs],
        "computation_ms": [round(run.computation_ms, 3) for run in runs],
        "warnings": [run.warnings for run in runs],
        "idle": is_idle,
        "median_of_idle_ms": round(statistics.median(idle), 4) if idle else None,
        "farthest_of_idle_from_median": None if spread is None else round(spread, 4),
        "farthest_of_all_from_median": round(farthest([run.p50_ms for run in runs]), 4),
        "at_most": WITHIN,
        "reached": spread is not None and spread <= WITHIN,
    }


def fixed_computation() -> float:
    """Milliseconds of a matrix product on all cores: twice as long where a neighbour computes on the same ones."""
    matrix = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    times = []
    for _ in range(PRODUCTS):
        started = time.perf_counter()
        matrix @ matrix
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def farthest(values: list[float]) -> float:
    """The largest distance from the median, as a share of it."""
    middle = statistics.median(values)
    return max(abs(value / middle - 1) for value in values)

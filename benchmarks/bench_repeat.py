"""Whether ``skdeploy bench`` repeats itself: several runs of the whole command, the spread of their medians.

It wants an idle machine.

python benchmarks/run.py bench_repeat
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

SKDEPLOY: Final = Path(sys.executable).with_name("skdeploy")
CASES: Final = (("sknet50", "1"), ("sknet-fashion", "1,8"))
REPEATS: Final = 7
SECONDS: Final = 5
WITHIN: Final = 0.03  # issue 6: of the median of all repeats, the farthest run included


def measure(repeats: int = REPEATS, seconds: float = SECONDS) -> dict[str, object]:
    """p50 of every run, how far the farthest is from their median, and what the machine did meanwhile."""
    results: dict[str, dict[str, Any]] = {}
    with TemporaryDirectory() as name:
        for card, _ in CASES:
            _skdeploy("export", card, "--target", "onnx", "--output", str(Path(name) / card))
        runs: dict[str, list[float]] = {}
        warnings: dict[str, list[str]] = {}
        for _ in range(repeats):  # in turn, so that a drift of the machine is seen by all
            for card, batches in CASES:
                report = json.loads(
                    _skdeploy(
                        "bench", str(Path(name) / card), "--backend", "onnxruntime", "--batch", batches,
                        "--seconds", str(seconds), "--json",
                    )
                )  # fmt: skip
                latency = report["measured"][0]["latency"]
                for row in latency["batches"]:
                    key = f"{card} fp32 batch {row['batch']}"
                    runs.setdefault(key, []).append(row["host_ms"]["p50"])
                    warnings.setdefault(key, []).extend(latency["machine"]["warnings"])
    for key, values in runs.items():
        spread = farthest(values)
        results[key] = {
            "p50_ms": [round(value, 4) for value in values],
            "median_ms": round(statistics.median(values), 4),
            "farthest_from_median": round(spread, 4),
            "at_most": WITHIN,
            "reached": spread <= WITHIN,
            "warnings": warnings[key],
        }
    return {"repeats": repeats, "seconds": seconds, "cases": results}


def farthest(values: list[float]) -> float:
    """The largest distance from the median, as a share of it."""
    middle = statistics.median(values)
    return max(abs(value / middle - 1) for value in values)


def _skdeploy(*arguments: str) -> str:
    done = subprocess.run([SKDEPLOY, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"skdeploy {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout

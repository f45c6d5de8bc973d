"""The main job as a user runs it: whole processes, wall time and peak memory.

``skdeploy --help``; ``skdeploy export sknet50 --fp16`` from nothing to a verified bundle; the same again, all up to date.
The figures to reach are those of the project's first issue: 0.35 s; 25 s and 3 GB; 2 s.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence

from benchmarks.machine import SKDEPLOY

RUNS = 5


def run_process(arguments: Sequence[str]) -> tuple[float, int]:
    """Seconds and peak resident bytes of one process, which must succeed."""
    started = time.perf_counter()
    process = subprocess.Popen([SKDEPLOY, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"skdeploy {' '.join(arguments)} failed:\n{errors.decode()}")
    return seconds, usage.ru_maxrss * 1024


def measure() -> dict[str, object]:
    """Medians of five, and all five."""
    helps = [run_process(["--help"])[0] for _ in range(RUNS)]
    exports, resumes, peaks = [], [], []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            command = ["export", "sknet50", "--fp16", "--output", f"{folder}/bundle"]
            seconds, peak = run_process(command)
            exports.append(seconds)
            peaks.append(peak)
            resumes.append(run_process(command)[0])
    return {
        "help_s": _summary(helps, 0.35),
        "export_sknet50_fp16_s": _summary(exports, 25),
        "export_sknet50_fp16_peak_gb": _summary([peak / 1e9 for peak in peaks], 3),
        "resume_sknet50_fp16_s": _summary(resumes, 2),
    }


def _summary(values: list[float], at_most: float) -> dict[str, object]:
    median = statistics.median(values)
    return {
        "median": round(median, 3),
        "runs": [round(value, 3) for value in values],
        "at_most": at_most,
        "reached": median <= at_most,
    }

"""What the proof costs: ``skdeploy export sknet50 --fp16`` against a script that makes the same engine and checks nothing.

Whole processes on two cores, in turns: the script (``peers/bare_export.py``), the export from nothing to a verified bundle, and
the same export again, all of it up to date. Ratios of medians to the script's; peaks are of the whole process tree.

    python benchmarks/bare_export.py [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.int8_speed import Cost, cost_of
from benchmarks.machine import ROOT, SKDEPLOY, describe

CARD: Final = "sknet50"
ROUNDS: Final = 5
EXPORT_AT_MOST: Final = 1.0  # of the script, as the next one
RESUME_AT_MOST: Final = 0.1
PEAK_GB_AT_MOST: Final = 2.8


def measure(rounds: int = ROUNDS) -> dict[str, Any]:
    """Seconds, peaks, and the export's and the resumed export's ratio to the script."""
    os.environ["PYTHONPATH"] = str(ROOT)  # the script takes the network from there
    costs: dict[str, list[Cost]] = {"bare": [], "export": [], "resume": []}
    for _ in range(rounds):
        with TemporaryDirectory() as folder:
            export: list[str | Path] = [SKDEPLOY, "export", CARD, "--fp16", "--output", f"{folder}/bundle"]
            script = ROOT / "benchmarks" / "peers" / "bare_export.py"
            costs["bare"].append(cost_of([sys.executable, script, CARD, folder]))
            costs["export"].append(cost_of(export))
            costs["resume"].append(cost_of(export))
    median = {name: statistics.median(cost.seconds for cost in runs) for name, runs in costs.items()}
    peak = {name: max(cost.peak_bytes for cost in runs) / 1e9 for name, runs in costs.items()}
    return {
        "rounds": rounds,
        "seconds": {name: [round(cost.seconds, 2) for cost in runs] for name, runs in costs.items()},
        "median_seconds": {name: round(value, 2) for name, value in median.items()},
        "peak_gb": {name: round(value, 3) for name, value in peak.items()},
        "targets": {
            "export_to_bare": _judged(median["export"] / median["bare"], EXPORT_AT_MOST),
            "resume_to_bare": _judged(median["resume"] / median["bare"], RESUME_AT_MOST),
            "export_peak_gb": _judged(peak["export"], PEAK_GB_AT_MOST),
        },
    }


def _judged(value: float, at_most: float) -> dict[str, Any]:
    return {"value": round(value, 3), "at_most": at_most, "reached": value <= at_most}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    result = {"machine": describe(), "bare_export": measure(options.rounds)}
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

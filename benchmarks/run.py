"""Runs the benchmarks and writes ``results/<name>.json`` beside this file.

python benchmarks/run.py [NAME ...]      # all of them by default
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BENCHMARKS = (
    "select_latency",
    "foreign_latency",
    "import_checkpoint",
    "main_job",
    "bare_export",
    "int8_quality",
    "int8_speed",
    "calibrate_alone",
    "plan_self_test",
    "bench_repeat",
    "engine_builds",
    "shards",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    names = parser.parse_args().names or BENCHMARKS
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no benchmark named {', '.join(sorted(unknown))}")
    sys.path.insert(0, str(HERE.parent))
    from benchmarks.machine import describe

    for name in names:
        result = {"machine": describe(), name: importlib.import_module(f"benchmarks.{name}").measure()}
        path = HERE / "results" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(path.name, json.dumps(result[name], indent=2))


if __name__ == "__main__":
    main()

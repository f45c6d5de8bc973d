"""Calibration of SKNet-50 against bare inference of the same images, without the start of a process; and a whole INT8 export.

Each way takes turns with the bare loop of ONNX Runtime (``peers/bare.py``); the ratio is the median of the turns'. ``minmax``
only measures ranges; with ``gptq`` each also rounds weights by 96 images. The export is a whole process from the card to a
verified graph, its peak that of all its processes.

    python benchmarks/calibrate_alone.py [--images 512] [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.int8_speed import PEAK_GB_AT_MOST, SCRIPTS, THREADS, cost_of, prepare
from benchmarks.machine import ROOT, SKDEPLOY, describe, skdeploy

CARD: Final = "sknet50"
IMAGES: Final = 512
ROUNDS: Final = 3
# At most so many times bare inference; what has no limit is shown beside it.
WAYS: Final[dict[str, tuple[str, str, float | None]]] = {
    "minmax": ("minmax", "nearest", 1.4),
    "auto": ("auto", "gptq", 2.5),
    "minmax gptq": ("minmax", "gptq", None),
}


def once(model: Path, images: Path, method: str, rounding: str, count: int) -> float:
    """Seconds of one calibration in this process."""
    from skdeploy.backends.onnxruntime import load_graph, open_session
    from skdeploy.core.spec import CalibrationMethod
    from skdeploy.line.calibration import CalibrationOptions, calibration_set
    from skdeploy.quant.calibrate import CalibrationSettings, calibrate
    from skdeploy.zoo.cards import load_card

    spec, _ = load_card(CARD)
    graph = load_graph(model)
    with open_session(model) as session:
        inputs = session.inputs
    asked = CalibrationOptions.model_validate(
        {"images": images, "method": CalibrationMethod(method), "weight_rounding": rounding, "number": count}
    )
    chosen = calibration_set(asked, spec)
    started = time.perf_counter()
    calibrate(graph, inputs, spec, chosen.dataset, CalibrationSettings(chosen.algorithm, chosen.asked))
    return time.perf_counter() - started


def _seconds(*command: str | Path) -> float:
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout)


def measure(images: int = IMAGES, rounds: int = ROUNDS) -> dict[str, Any]:
    """Seconds and ratios to bare inference, and the peak of an export."""
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files, inputs = prepare(folder, images)
        skdeploy("export", CARD, "--target", "onnx", "-o", folder / "fp32")
        model = folder / "fp32" / "model.onnx"
        for _ in range(rounds):
            for name, (method, rounding, _) in WAYS.items():
                bare = _seconds(SCRIPTS / "bare.py", model, inputs, str(images))
                ours = _seconds(__file__, "--once", model, files, method, rounding, str(images))
                runs[name].append((ours, bare))
        export: list[str | Path] = [SKDEPLOY, "export", CARD, "--int8", "--calib", files, "--target", "onnx"]
        whole = cost_of([*export, "-o", folder / "int8"])
    peak = whole.peak_bytes / 1e9
    return {
        "images": images,
        "rounds": rounds,
        "threads": THREADS,
        "ways": {name: _row(runs[name], at_most) for name, (_, _, at_most) in WAYS.items()},
        "export_of_a_card": {
            "seconds": round(whole.seconds, 1),
            "peak_gb": round(peak, 3),
            "at_most": PEAK_GB_AT_MOST,
            "reached": peak <= PEAK_GB_AT_MOST,
        },
    }


def _row(runs: list[tuple[float, float]], at_most: float | None) -> dict[str, Any]:
    ratio = statistics.median(ours / bare for ours, bare in runs)
    judged = {} if at_most is None else {"at_most": at_most, "reached": ratio <= at_most}
    return {
        "seconds": [round(ours, 2) for ours, _ in runs],
        "bare_seconds": [round(bare, 2) for _, bare in runs],
        "ratio": round(ratio, 3),
        **judged,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument(
        "--once", nargs=5, metavar=("MODEL", "IMAGES", "METHOD", "ROUNDING", "COUNT"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.once:
        model, images, method, rounding, count = options.once
        print(once(Path(model), Path(images), method, rounding, int(count)))
        return
    result = {"machine": describe(), "calibrate_alone": measure(options.images, options.rounds)}
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

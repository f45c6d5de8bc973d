"""Calibration of SKNet-50 against bare inference of the same images, without the start of a process; and a whole INT8 export.

A round is the bare loop of ONNX Runtime (``peers/bare.py``), then each way; a last bare loop ends the rounds. A way's ratio is
to the mean of the two bare loops around its round, and the median of the rounds counts. ``minmax`` only measures ranges,
``auto`` also chooses the method, with weights rounded to nearest and by GPTQ, the default. The export is a whole process from
the card to a verified graph, its peak that of all its processes. With ``--json`` the file is written after each round, so a run
that is stopped leaves what it has.

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
from collections.abc import Callable
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
# Method, rounding of weights, and how many times bare inference it may take.
WAYS: Final[dict[str, tuple[str, str, float]]] = {
    "minmax": ("minmax", "nearest", 1.4),
    "auto, nearest": ("auto", "nearest", 2.5),
    "auto, gptq": ("auto", "gptq", 2.5),
}


def once(model: Path, images: Path, method: str, rounding: str, count: int) -> float:
    """Seconds of one calibration in this process."""
    from skdeploy.backends.onnxruntime import load_graph, open_session
    from skdeploy.core.memory import keep_freed
    from skdeploy.core.spec import CalibrationMethod
    from skdeploy.line.calibration import CalibrationOptions, calibration_set
    from skdeploy.quant.calibrate import CalibrationSettings, calibrate
    from skdeploy.zoo.cards import load_card

    keep_freed()  # as the command line does
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


def measure(
    images: int = IMAGES, rounds: int = ROUNDS, keep: Callable[[dict[str, Any]], None] = print
) -> dict[str, Any]:
    """Seconds and ratios to bare inference, and the peak of an export. ``keep`` gets what is known after each round."""
    bare: list[float] = []
    runs: dict[str, list[float]] = {name: [] for name in WAYS}
    found: dict[str, Any] = {"images": images, "threads": THREADS}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files, inputs = prepare(folder, images)
        skdeploy("export", CARD, "--target", "onnx", "-o", folder / "fp32")
        model = folder / "fp32" / "model.onnx"
        for _ in range(rounds):
            bare.append(_seconds(SCRIPTS / "bare.py", model, inputs, str(images)))
            for name, (method, rounding, _) in WAYS.items():
                runs[name].append(_seconds(__file__, "--once", model, files, method, rounding, str(images)))
            found |= _rows(runs, bare)
            keep(found)
        bare.append(_seconds(SCRIPTS / "bare.py", model, inputs, str(images)))
        found |= _rows(runs, bare)
        keep(found)
        export: list[str | Path] = [SKDEPLOY, "export", CARD, "--int8", "--calib", files, "--target", "onnx"]
        whole = cost_of([*export, "-o", folder / "int8"])
    peak = whole.peak_bytes / 1e9
    return found | {
        "export_of_a_card": {
            "seconds": round(whole.seconds, 1),
            "peak_gb": round(peak, 3),
            "at_most": PEAK_GB_AT_MOST,
            "reached": peak <= PEAK_GB_AT_MOST,
        },
    }


def _rows(runs: dict[str, list[float]], bare: list[float]) -> dict[str, Any]:
    """``bare`` has one time for each round, and the last one where the rounds are over."""
    around = [statistics.mean(bare[at : at + 2]) for at in range(len(bare))]
    ways = {}
    for name, (_, _, at_most) in WAYS.items():
        ratios = [ours / beside for ours, beside in zip(runs[name], around, strict=False)]
        ratio = statistics.median(ratios)
        ways[name] = {
            "seconds": [round(ours, 2) for ours in runs[name]],
            "ratios": [round(each, 3) for each in ratios],
            "ratio": round(ratio, 3),
            "at_most": at_most,
            "reached": ratio <= at_most,
        }
    return {"rounds": len(runs["minmax"]), "bare_seconds": [round(each, 2) for each in bare], "ways": ways}


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
    machine = describe()

    def keep(found: dict[str, Any]) -> None:
        text = json.dumps({"machine": machine, "calibrate_alone": found}, indent=2)
        print(text, flush=True)
        if options.json:
            options.json.write_text(text + "\n", encoding="utf-8")

    keep(measure(options.images, options.rounds, keep))


if __name__ == "__main__":
    main()

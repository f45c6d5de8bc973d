"""What each verb prints on 80 columns, as reviewed: one golden a screen. Other tests ask for facts, not for words.

``pytest tests/cli/test_screens.py --refresh-goldens`` writes tests/golden/screens anew after a change that is meant.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from skdeploy import engines
from skdeploy.backends.base import Availability
from skdeploy.devices import cuda
from tests.cli.conftest import Run
from tests.golden_text import check_golden, masked

GOLDENS = Path(__file__).parents[1] / "golden/screens"
EXPORT = "export tiny.toml --exporter torchscript --images images --weights tiny.safetensors -o new"
SCREENS = {
    "export": f"{EXPORT} --fp16 --target onnx",
    "export_again": f"{EXPORT} --fp16 --target onnx -o bundle",
    "export_int8": f"{EXPORT} --int8 --calib images --target onnx",
    "export_engine": f"{EXPORT} --fp16 --target tensorrt_rtx",
    "inspect": "inspect bundle",
    "inspect_int8": "inspect int8",
    "inspect_graph": "inspect bundle/model.onnx",
    "inspect_engine": "inspect built --engine",
    "verify": "verify bundle --images images --suite noise --suite memory",
    "verify_engine": "verify built --images images",
    "verify_int8_blame": "verify int8 --images images --blame",
    "build": "build bundle --target tensorrt_rtx",
    "evaluate": "evaluate bundle --data evaluation.npz --max-drop 20",
    "evaluate_undecided": "evaluate bundle --data evaluation.npz --num-images 2 --max-drop 0.5",
    "evaluate_against": "evaluate bundle --against other --data evaluation.npz",
    "predict": "predict bundle images/0.png --all",
    "calibrate": "calibrate bundle --calib images -o ranges.json",
    "sensitivity": "sensitivity int8 --data evaluation.npz",
    "tune": "tune bundle --data evaluation.npz --calib images --max-drop 1 --dry-run",  # an order by SQNR depends on the CPU
    "attention": "attention bundle --data images --scales 1,1.5,2",
    "plan": "plan bundle --device orin-nano",
    "plan_devices": "plan bundle --device t4,orin-nx",
    "bench": "bench bundle --backend onnxruntime --seconds 0.02 --against-artifact model.onnx",
    "doctor": "doctor",
    "convert": "convert tiny.safetensors --card tiny.toml -o converted.safetensors",
    "convert_caffe": "convert official.caffemodel -o made/net.safetensors",
    "init": "init bundle/model.onnx -o mine.toml",
    "models": "models tiny.toml",
    "report": "report bundle",
    "start": "start --bundle bundle --cache cache --backend onnxruntime predict images/0.png",
    "error": "export sknt50",
}
NEEDS_RTX = {"export_engine", "inspect_engine", "verify_engine", "build"}


@pytest.fixture
def folder(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the desk as the working folder, on a machine without a GPU, with a terminal of 80 columns."""
    copy = Path(shutil.copytree(desk, tmp_path / "folder"))
    monkeypatch.chdir(copy)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("skdeploy.report.terminal.LOG_WIDTH", 80)
    monkeypatch.setattr(cuda, "devices", lambda: ())
    monkeypatch.setattr(cuda, "driver_problem", lambda: "no NVIDIA driver")
    return copy


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine decides, settled: which of two graphs is faster, what disturbed it, and what is installed."""
    from skdeploy.bench import measure
    from skdeploy.inspect import diagnosis

    bench, diagnose = measure.bench, diagnosis.diagnose

    def settled_bench(*arguments: Any) -> Any:
        report = bench(*arguments)
        (measured, *_), (compared,) = report.measured, report.comparisons
        rows = tuple(row.model_copy(update={"warm_up_stable": True}) for row in measured.latency.batches)
        machine = measured.latency.machine.model_copy(update={"warnings": ("the CPU was busy",)})
        latency = measured.latency.model_copy(update={"batches": rows, "machine": machine})
        ratio = compared.ratio.model_copy(update={"verdict": "faster"})
        return report.model_copy(
            update={
                "measured": (measured.model_copy(update={"device": "a CPU", "latency": latency}),),
                "comparisons": (compared.model_copy(update={"ratio": ratio}),),
            }
        )

    def settled_diagnosis() -> Any:
        there = Availability("onnxruntime", True, "1.2.3", "cpu")
        absent = Availability("tensorrt", False, reason="no GPU", install="pip install it")
        return dataclasses.replace(
            diagnose(), platform="Linux", parts=(there, absent), problems=("two of them",), auto_target="onnx"
        )

    monkeypatch.setattr(measure, "bench", settled_bench)
    monkeypatch.setattr(diagnosis, "diagnose", settled_diagnosis)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("screen", SCREENS)
def test_a_screen_is_the_one_that_was_reviewed(
    screen: str, run: Run, folder: Path, request: pytest.FixtureRequest, pytestconfig: pytest.Config
) -> None:
    if screen in NEEDS_RTX:
        if reason := engines.obstacle("tensorrt_rtx")[0]:
            pytest.skip(reason)
        shutil.copytree(request.getfixturevalue("once_built"), folder / "built")
    result = run(*SCREENS[screen].split())
    text = (
        f"$ skdeploy {SCREENS[screen]}\n{masked(result.out)}--- exit code {result.code}, stderr:\n{masked(result.err)}"
    )
    check_golden(GOLDENS / f"{screen}.txt", text, refresh=pytestconfig.getoption("--refresh-goldens"))


def test_other_words_are_told_and_other_numbers_are_not(tmp_path: Path) -> None:
    check_golden(tmp_path / "made/a.txt", masked("took 1.5 s at 3e-05 of 12 MB\n"), refresh=True)
    check_golden(tmp_path / "made/a.txt", masked("took  22 s at 0.1 of 1,200 MB\n"), refresh=False)
    with pytest.raises(AssertionError):
        check_golden(tmp_path / "made/a.txt", masked("took 1.5 s at 3e-05 of 12 kB\n"), refresh=False)

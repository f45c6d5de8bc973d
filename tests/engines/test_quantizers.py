"""What other quantizers make, as committed in tests/golden/quantizers, meets the verdict that TensorRT's parser gives it."""

from __future__ import annotations

from pathlib import Path

import pytest

from skdeploy import engines
from skdeploy.core.errors import EngineError
from skdeploy.engines._build import BatchProfile, BuildOptions, EngineReport, build

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "quantizers"
pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")

REFUSED = "refuses .*input has type Int32"
ASYMMETRIC = "refuses .*Non-zero zero point"
RETYPED = "with other types than the graph has"
VERDICTS = {
    "onnxruntime_default": REFUSED,
    "onnxruntime_uint8": REFUSED,
    "onnxruntime_symmetric_int32_bias": REFUSED,
    "nncf_mixed": ASYMMETRIC,
    "nncf_default": RETYPED,
}
# FP16 scales: the kernels hold them as FP32, which loses nothing. TensorRT-RTX says so, and the report keeps it.
WIDENED = {f"(foreignNode) Converting conv {what} scales to fp32." for what in ("activation", "weight")}
BUILT: dict[str, set[str]] = {"onnxruntime_symmetric": set(), "modelopt_fp32": set(), "modelopt_default": WIDENED}


def build_golden(name: str, plan: Path) -> EngineReport:
    trt = engines.load("tensorrt_rtx")
    return build(
        trt, FOLDER / f"{name}.onnx", plan, BuildOptions(BatchProfile(1, 2, 4)), lambda _phase, _fraction: None
    )


@pytest.mark.parametrize(("name", "reason"), VERDICTS.items())
def test_a_graph_that_would_be_built_wrong_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=f"(?s){reason}"):
        build_golden(name, tmp_path / "plan")


@pytest.mark.parametrize(("name", "warnings"), BUILT.items())
def test_a_symmetric_graph_is_built(name: str, warnings: set[str], tmp_path: Path) -> None:
    report = build_golden(name, tmp_path / "plan")
    assert (tmp_path / "plan").stat().st_size > 0
    assert report.layer_types["int8"] > 0
    assert {warning.strip() for warning in report.log_warnings} == warnings


def test_every_golden_has_a_verdict() -> None:
    assert {path.stem for path in FOLDER.glob("*.onnx")} == {*VERDICTS, *BUILT}

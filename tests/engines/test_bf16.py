"""BF16 in TensorRT-RTX: what it builds, and the transposed convolutions that it does not, which therefore stay FP32."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from skdeploy.core.errors import EngineError
from skdeploy.core.precision import PRECISIONS
from skdeploy.ir.nodes import BFLOAT16
from skdeploy.passes.half import HalfPrecision
from skdeploy.passes.raise_opset import RaiseOpset
from tests.engines.test_stored import LAYERS, build, network

pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")

BF16 = PRECISIONS["bf16"]
TRANSPOSED = [index for index, layer in enumerate(LAYERS) if layer[0] == "ConvTranspose"]


def lowered(model: ir.Model) -> tuple[ir.Model, HalfPrecision]:
    lowering = HalfPrecision(precision=BF16)
    return lowering(RaiseOpset(BFLOAT16)(model).model).model, lowering


def test_every_kind_of_layer_is_built_with_transposed_convolutions_in_fp32(tmp_path: Path) -> None:
    model, lowering = lowered(network(0))
    reason = "TensorRT-RTX has no BF16 kernels for ConvTranspose"
    assert lowering.kept == {f"l{index}/ConvTranspose": reason for index in TRANSPOSED}
    proof = build(model, tmp_path).proof
    assert not proof.wider
    assert not proof.unproven
    found = {layer.node: layer.found for layer in proof.weighted}
    assert found == {
        f"l{index}/{layer[0]}": "fp32" if index in TRANSPOSED else "bf16" for index, layer in enumerate(LAYERS)
    }


def test_tensorrt_rtx_does_not_build_a_transposed_convolution_in_bf16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, a new TensorRT-RTX builds it, and ``no_kernels`` may go."""
    monkeypatch.setattr(BF16, "no_kernels", ())
    model, lowering = lowered(network(0, (TRANSPOSED[0],)))
    assert not lowering.kept
    with pytest.raises(EngineError, match="could not build"):
        build(model, tmp_path)

"""What TensorRT-RTX says of a graph on disk: nothing, that it lacks an operator, or that it would change types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.helper import make_node as node

from skdeploy.core.errors import PassError
from skdeploy.engines import obstacle
from skdeploy.engines.parsing import parser_refusal
from tests.graphs.small_files import save

ABSENT = obstacle("tensorrt_rtx")[0]

pytestmark = pytest.mark.skipif(bool(ABSENT), reason=f"TensorRT-RTX: {ABSENT}")


def written(folder: Path, *nodes: onnx.NodeProto, shape: tuple[int, ...] = (), **constants: np.ndarray) -> Path:
    path = save(folder / "graph.onnx", nodes, {"x": [2, 4, 4]}, {"y": shape or [2, 4, 4]}, constants)
    onnx.checker.check_model(str(path), full_check=True)
    return path


def test_a_graph_that_the_parser_takes_has_no_refusal(tmp_path: Path) -> None:
    assert parser_refusal(written(tmp_path, node("Relu", ["x"], ["y"], name="unit/Relu"))) == ""


def test_an_operator_that_tensorrt_lacks_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, node("Det", ["x"], ["y"], name="unit/Det"), shape=(2,))
    assert "node 'unit/Det' (Det): the operator Det is not supported" in parser_refusal(path)


def test_a_graph_that_the_parser_would_build_with_other_types_is_refused(tmp_path: Path) -> None:
    """UINT8 zero points become INT8 there, with a warning only."""
    path = written(
        tmp_path,
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="unit/QuantizeLinear"),
        node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="unit/DequantizeLinear"),
        scale=np.array(0.1, np.float32),
        zero=np.array(128, np.uint8),
    )
    with pytest.raises(PassError, match="QuantizeLinear") as refusal:
        parser_refusal(path)
    assert "--keep-fp32" in refusal.value.advice

"""Squeezes of wide axes, as torch.onnx's dynamo exporter writes them: what torch computes, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto

from skdeploy.core.errors import SkdeployError
from skdeploy.passes.foreign import foreign_notes, read_foreign
from tests.graphs.networks import images, run
from tests.graphs.small_files import model_of, node

NOTE = "named an axis with a size other than 1, which torch leaves alone and ONNX forbids: these axes were dropped"


def squeezing(axes: list[int], *, opset: int = 18, twice: bool = False, producer: str = "pytorch") -> ModelProto:
    """Means of three channels (n, 3, 1, 1), squeezed along ``axes``, without the inner shapes, flattened."""
    given: dict[str, Any] = {"axes": axes} if opset < 13 else {}
    names = () if given else ("axes",)
    nodes = [node("GlobalAveragePool", "x", "mean"), node("Squeeze", "mean", *names, "one", **given)]
    if twice:
        nodes.append(node("Squeeze", "one", *names, "two", **given))
    nodes += [node("Relu", "two" if twice else "one", "positive"), node("Flatten", "positive", "y")]
    constants = {} if given else {"axes": np.array(axes, np.int64)}
    proto = model_of(nodes, {"x": ("n", 3, 4, 4)}, {"y": ("n", 3)}, constants, opset=opset)
    proto.producer_name = producer
    return proto


def as_torch_has_it(inputs: np.ndarray[Any, Any], axes: list[int]) -> np.ndarray[Any, Any]:
    return torch.from_numpy(inputs).mean((2, 3), keepdim=True).squeeze(tuple(axes)).relu().flatten(1).numpy()


@pytest.mark.parametrize("axes", [[1], [-3], [1, 2], [3, 1]])
@pytest.mark.parametrize("opset", [11, 18])
def test_axes_that_are_not_one_are_dropped_as_torch_leaves_them(axes: list[int], opset: int, tmp_path: Path) -> None:
    path, inputs = tmp_path / "m.onnx", images(3, 4, 4)
    onnx.save(squeezing(axes, opset=opset), path)
    with pytest.raises(Exception, match="Dimension of input 1 must be 1 instead of 3"):
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    model = read_foreign(path)
    np.testing.assert_allclose(run(model, inputs)["logits"], as_torch_has_it(inputs, axes), rtol=1e-6)  # sums of 16
    first, second = foreign_notes(model).interface
    assert first == f"1 Squeeze {NOTE}"
    assert second == "the file does not run as it was, so the function was compared with the file without these axes"


def test_what_nothing_but_another_such_squeeze_shows_is_found_too(tmp_path: Path) -> None:
    """Shape inference stops at the first; then it knows the size at the second."""
    path, inputs = tmp_path / "m.onnx", images(3, 4, 4)
    onnx.save(squeezing([1], twice=True), path)
    model = read_foreign(path)
    np.testing.assert_allclose(run(model, inputs)["logits"], as_torch_has_it(inputs, [1]), rtol=1e-6)
    assert foreign_notes(model).interface[0] == f"2 Squeezes {NOTE}"


def test_axes_of_one_are_squeezed_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(squeezing([2, 3]), path)
    assert foreign_notes(read_foreign(path)).interface == ()


def test_a_free_size_is_not_taken_for_a_wide_one(tmp_path: Path) -> None:
    """Axis 2 may be 1: whether the Squeeze is valid shows in the run, and here it is not."""
    proto = model_of(
        [node("Squeeze", "x", "axes", "y")], {"x": ("n", 3, "h")}, {"y": None}, {"axes": np.array([2], np.int64)}
    )
    proto.producer_name = "pytorch"
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(SkdeployError, match="Squeeze"):
        read_foreign(tmp_path / "m.onnx")


def test_other_exporters_files_stay_refused(tmp_path: Path) -> None:
    onnx.save(squeezing([1], producer="tf2onnx"), tmp_path / "m.onnx")
    with pytest.raises(SkdeployError, match="must be 1 instead of 3"):
        read_foreign(tmp_path / "m.onnx")

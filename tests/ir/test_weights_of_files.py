"""NaN weights and quantized graphs are named as what they are; infinities that are meant pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from skdeploy.core.errors import IntegrityError
from skdeploy.passes.foreign import read_foreign
from tests.graphs.small_files import node, write


def weight(value: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    values = np.ones((2, 3, 1, 1), np.float32)
    values[1, 2] = value
    return values


@pytest.mark.parametrize(
    ("value", "said"), [(np.nan, "1 are NaN and 0 infinite"), (-np.inf, "0 are NaN and 1 infinite")]
)
@pytest.mark.parametrize("through", [False, True], ids=("as it is", "through a view"))
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, value: float, said: str, through: bool) -> None:
    shown = [node("Transpose", "w", "v", perm=[0, 1, 3, 2])] if through else []
    nodes = [
        *shown,
        node("Conv", "x", "v" if through else "w", "c"),
        node("GlobalAveragePool", "c", "p"),
        node("Flatten", "p", "y"),
    ]
    file = write(tmp_path / "m.onnx", nodes, w=weight(value))
    with pytest.raises(IntegrityError, match=rf"m\.onnx: of the 6 values of w, which the_c \(Conv\) reads, {said}"):
        read_foreign(file)


def test_infinite_bounds_and_masks_are_taken(tmp_path: Path) -> None:
    nodes = [
        node("Clip", "x", "zero", "infinity", "c"),
        node("Where", "mask", "c", "least", "m"),
        node("GlobalMaxPool", "m", "p"),
        node("Flatten", "p", "y"),
    ]
    mask = np.ones((1, 1, 4, 4), bool)
    mask[..., 0] = False
    constants = {"zero": np.float32(0), "infinity": np.float32(np.inf), "mask": mask, "least": np.float32(-np.inf)}
    assert read_foreign(write(tmp_path / "m.onnx", nodes, **constants)).graph.outputs[0].name == "logits"

"""Fewer, fatter groups compute the same, in every precision; what cannot be merged is left, with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator

from skdeploy.core.errors import UsageError
from skdeploy.passes.regroup import Regroup, block_diagonal
from tests.graphs.int8_networks import TORCHSCRIPT, TWO, feeds_for, int8, pixels, spec_of
from tests.graphs.networks import FLOAT32_ERROR, Array, relative_error
from tests.graphs.small_files import model_of

GROUPS = 8


def grouped(
    *,
    groups: int = GROUPS,
    channels: int = 2,
    outputs: int = 3,
    stride: int = 1,
    dilation: int = 1,
    dtype: type = np.float64,
) -> ir.Model:
    """One grouped convolution with a bias on 9 x 11 maps."""
    generator = np.random.default_rng(0)
    weight: Array = generator.standard_normal((groups * outputs, channels, 3, 3)).astype(dtype)
    bias: Array = generator.standard_normal(groups * outputs).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node(
        "Conv",
        ["x", "w", "b"],
        ["y"],
        "m/Conv",
        group=groups,
        strides=[stride] * 2,
        dilations=[dilation] * 2,
        pads=[1] * 4,
    )
    shape = [2, groups * channels, 9, 11]
    return ir.from_proto(model_of([node], {"x": shape}, {"y": None}, {"w": weight, "b": bias}, dtype=kind))


def evaluated(model: ir.Model, x: np.ndarray) -> np.ndarray:
    ran: Any = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})
    found: Array = ran[0]
    return found


@pytest.mark.parametrize("fewer", [1, 2, 4])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_torchs_grouped_convolution_is_still_what_is_computed(fewer: int, stride: int, dilation: int) -> None:
    model = grouped(stride=stride, dilation=dilation)
    weight, bias = (torch.from_numpy(model.graph.initializers[name].const_value.numpy().copy()) for name in "wb")
    x = np.random.default_rng(1).standard_normal((2, 16, 9, 11))
    expected = torch.conv2d(torch.from_numpy(x), weight, bias, stride, 1, dilation, GROUPS).numpy()
    found = evaluated(Regroup(fewer)(model).model, x)
    # float64, 18 terms in another order: below 18 eps of the largest, 4e-15
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-15 * np.abs(expected).max())
    assert next(iter(model.graph)).attributes.get_int("group") == fewer


def test_a_weight_in_another_block_would_show() -> None:
    model = grouped()
    x = np.random.default_rng(1).standard_normal((2, 16, 9, 11))
    expected = evaluated(model, x)
    merged = Regroup(2)(model).model
    value = next(iter(merged.graph)).inputs[1]
    value.const_value = ir.tensor(np.roll(value.const_value.numpy(), 2, axis=1), name=value.name)
    assert np.abs(evaluated(merged, x) - expected).max() > 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [np.int8, np.float16, np.float32])
@pytest.mark.parametrize(("groups", "fewer", "inputs"), [(8, 4, 2), (32, 8, 4), (6, 1, 3), (6, 3, 5)])
def test_every_weight_keeps_its_input_and_all_else_is_exactly_zero(
    dtype: type, groups: int, fewer: int, inputs: int
) -> None:
    rows = 2
    weight: Array = np.random.default_rng(0).integers(1, 100, (groups * rows, inputs, 3, 1)).astype(dtype)
    wide = block_diagonal(weight, groups, fewer)
    assert wide.dtype == weight.dtype
    assert np.count_nonzero(wide) == weight.size
    for row in range(groups * rows):
        # input channel of the whole map = first of the (merged) group + index in it: written out, not reshaped
        first, merged_first = row // rows * inputs, row // (groups // fewer * rows) * wide.shape[1]
        for index in range(inputs):
            np.testing.assert_array_equal(wide[row, first + index - merged_first], weight[row, index])


def test_reports_what_it_costs_and_what_it_left() -> None:
    merge = Regroup(2)
    merge(grouped(dtype=np.float32))
    assert [(m.node, m.groups, m.factor, m.weight_bytes) for m in merge.merged] == [("m/Conv", 8, 4, 24 * 2 * 9 * 4)]
    assert merge.declined == {}


@pytest.mark.parametrize(
    ("model", "groups", "why"),
    [
        (grouped(), 8, "it already has 8 groups"),
        (grouped(), 16, "it already has 8 groups"),
        (grouped(), 3, "3 does not divide its 8 groups"),
        (grouped(channels=1), 2, "it is depthwise"),
        (grouped(groups=1), 2, "no grouped convolution"),
    ],
)
def test_nothing_to_merge_is_refused_with_the_reason(model: ir.Model, groups: int, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Regroup(groups)(model)


def test_infinity_reaches_its_whole_merged_group_as_documented() -> None:
    x = np.zeros((2, 16, 9, 11))
    x[0, 0, 4, 4] = np.inf
    with np.errstate(invalid="ignore"):  # 0 * inf, which is the point
        before, after = (
            ~np.isfinite(evaluated(model, x)).all(axis=(0, 2, 3)) for model in (grouped(), Regroup(2)(grouped()).model)
        )
    assert not before[3:].any()
    assert after[3:12].any()
    assert not after[12:].any()


@pytest.mark.parametrize("half", [False, True])
def test_int8_networks_give_the_same_logits(half: bool) -> None:
    model, merge = int8(TWO, TORCHSCRIPT, half=half), Regroup(2)
    feeds = feeds_for(model, spec_of(TWO), pixels(4))
    expected = outputs(model, feeds)
    merged = merge(model).model
    assert merge.merged
    # FP32 sums in another order, before rounding to the same integers; FP16 has 11 bits
    assert relative_error(outputs(merged, feeds), expected) < (2e-3 if half else FLOAT32_ERROR)
    for node in merged.graph:
        if node.op_type == "Conv" and node.attributes.get_int("group", 1) > 1:
            assert node.attributes.get_int("group") == 2


def outputs(model: ir.Model, feeds: dict[str, Array]) -> Array:
    """The first output in ONNX Runtime, with every Q/DQ computed as the graph says."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: Array = session.run(None, feeds)[0]
    return found

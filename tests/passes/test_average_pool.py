"""Means over the map as average pools: the same numbers, and no mean where the size is known."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import ModelProto, checker, helper
from onnx.reference import ReferenceEvaluator

from skdeploy.core.errors import UsageError
from skdeploy.passes.average_pool import LARGEST, AveragePoolForMean, Size, windows_of
from skdeploy.planning.dla import refusal
from tests.graphs.small_files import model_of


def mean(
    operator: str = "ReduceMean",
    *,
    axes: tuple[int, ...] = (2, 3),
    keepdims: int = 1,
    size: tuple[int, int | str] = (7, 5),
    kind: type = np.float64,
) -> ir.Model:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    reduces = operator == "ReduceMean"
    node = helper.make_node(operator, ["x", "axes"] if reduces else ["x"], ["y"], "m/Mean")
    if reduces:
        node.attribute.append(helper.make_attribute("keepdims", keepdims))
    point = [2, 3, 1, 1] if keepdims else [2, 3]
    flat_axes = axes in ((2, 3), (-1, -2))
    constants = {"axes": np.array(axes, np.int64)} if reduces else {}
    return ir.from_proto(
        model_of([node], {"x": [2, 3, *size]}, {"y": point if flat_axes else None}, constants, dtype=dtype)
    )


def computed(model: ir.Model | ModelProto, x: np.ndarray) -> np.ndarray:
    """The first output, as ONNX's own evaluator has it."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    ran: Any = ReferenceEvaluator(proto).run(None, {"x": x})
    return ran[0]


@pytest.mark.parametrize(
    "model",
    [mean("GlobalAveragePool"), mean(), mean(axes=(-1, -2)), mean(keepdims=0)],
    ids=["global", "reduce", "negative axes", "keepdims 0"],
)
def test_is_numpys_mean(model: ir.Model) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 7, 5))
    flat = len(model.graph.outputs[0].shape or ()) == 2
    rewrite = AveragePoolForMean()
    result = rewrite(model).model
    found = computed(result, x)
    # float64, 35 terms in another order: within 35 eps
    np.testing.assert_allclose(found, x.mean((2, 3), keepdims=not flat), rtol=0, atol=1e-14)
    assert rewrite.windows == {"m/Mean": ((7, 5),)}
    assert not {"ReduceMean", "GlobalAveragePool"} & {node.op_type for node in result.graph}
    assert result.graph.outputs[0].name == "y"


@pytest.mark.parametrize(
    ("size", "windows"),
    [
        ((56, 56), ((8, 8), (7, 7))),
        ((28, 14), ((7, 7), (4, 2))),
        ((112, 7), ((8, 7), (7, 1), (2, 1))),
        ((1, 1), ((1, 1),)),
        ((11, 7), ((11, 7),)),  # a prime above 7
        ((22, 56), ((22, 56),)),
    ],
)
@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_large_map_takes_pools_that_dla_has_where_its_sizes_have_factors(
    size: Size, windows: tuple[Size, ...], keepdims: int
) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, *size))
    rewrite = AveragePoolForMean()
    proto = ir.to_proto(rewrite(mean(size=size, keepdims=keepdims)).model)
    checker.check_model(proto, full_check=True)
    pools = [node for node in proto.graph.node if node.op_type == "AveragePool"]
    kernels = [tuple(helper.get_node_attr_value(node, "kernel_shape")) for node in pools]
    assert tuple(kernels) == windows == rewrite.windows["m/Mean"]
    assert pools[-1].name == "m/Mean"
    # float64: windows of at most 64, thrice, err by less than 3 x 64 eps of values below 6; the whole map at once, of
    # 22 x 56 values, by pairwise sums in NumPy.
    np.testing.assert_allclose(computed(proto, x), x.mean((2, 3), keepdims=bool(keepdims)), rtol=0, atol=1e-13)


def test_windows_multiply_to_the_map_and_are_small_wherever_primes_allow() -> None:
    primes = [number for number in range(2, 225) if all(number % divisor for divisor in range(2, number))]
    for pixels in range(1, 225):
        windows = windows_of((pixels, 1))
        assert prod(height for height, _ in windows) == pixels
        smooth = not any(pixels % prime == 0 for prime in primes if prime > 7)
        assert all(height <= LARGEST for height, _ in windows) == smooth


@pytest.mark.parametrize("pixels", [7, 28, 56, 112])
def test_the_planners_rules_for_dla_refuse_the_mean_and_take_its_pools(pixels: int) -> None:
    before = mean(size=(pixels, pixels))
    assert refusal(before.graph.node("m/Mean"), {})
    assert [refusal(node, {}) for node in AveragePoolForMean()(before).model.graph] == [""] * (
        1 + (pixels > 8) + (pixels > 64)
    )
    odd = AveragePoolForMean()(mean(size=(22, 22))).model
    assert [refusal(node, {}) for node in odd.graph] == ["AveragePool: window must be from 1 to 8"]


@pytest.mark.parametrize(
    ("size", "attribute", "value"),
    [((7, 5), "kernel_shape", [7, 4]), ((56, 56), "strides", [7, 8])],
    ids=["a smaller kernel", "windows that overlap, and count twice what they share"],
)
def test_another_pool_would_show(size: Size, attribute: str, value: list[int]) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, *size))
    result = AveragePoolForMean()(mean(size=size)).model
    next(iter(result.graph)).attributes[attribute] = ir.AttrInt64s(attribute, value)
    found = computed(result, x)
    assert found.shape != (2, 3, 1, 1) or not np.allclose(found, x.mean((2, 3), keepdims=True), rtol=0, atol=1e-3)


def test_pools_in_fp32_are_told_from_others() -> None:
    single, half = AveragePoolForMean(), AveragePoolForMean()
    single(mean(kind=np.float32))
    half(mean(kind=np.float16))
    assert (single.single, half.single) == (["m/Mean"], [])


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (mean(size=(7, "width")), "height and width of its map are not known"),
        (mean(axes=(1,)), "not a mean over height and width"),
        (mean(axes=(1, 2, 3)), "not a mean over height and width"),
    ],
)
def test_what_cannot_be_a_pool_is_refused_with_the_reason(model: ir.Model, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        AveragePoolForMean()(model)

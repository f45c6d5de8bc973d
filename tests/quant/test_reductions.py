"""Reductions of large maps in the graph, against the same maps outside it, through numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from skdeploy.core.errors import CalibrationError
from skdeploy.core.spec import CalibrationMethod
from skdeploy.ir.signs import never_negative
from skdeploy.quant.observe import Observation, observe
from skdeploy.quant.observers import MOST_COUNTED, MagnitudeHistogram, apart
from skdeploy.quant.reductions import reduce_maps
from skdeploy.quant.thresholds import threshold

# Maps of 8 x 100 x 101 values, more than are counted, and a pooled one of fewer.
GRAPH = """
<ir_version: 10, opset_import: ["" : 19]>
large (float[n,3,100,101] input) => (float[n,8] logits)
<float[8,3,3,3] w, int64[2] space = {2,3}>
{
  conv = Conv<pads=[1,1,1,1]>(input, w)
  relu = Relu(conv)
  pooled = MaxPool<kernel_shape=[3,3], strides=[4,4]>(relu)
  weight = Sigmoid(conv)
  chosen = Mul(relu, weight)
  apart = Sub(relu, chosen)
  mean = ReduceMean(chosen, space)
  logits = Flatten(mean)
}
"""
NAMES = ["conv", "relu", "pooled", "chosen", "apart"]
IN_GRAPH = {"relu", "chosen"}


def large() -> ir.Model:
    proto = onnx.parser.parse_model(GRAPH)
    weights = np.random.default_rng(0).normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def images(count: int) -> NDArray[np.float32]:
    """Each brighter than the one before."""
    noise = np.random.default_rng(1).normal(0, 1, (count, 3, 100, 101))
    return (noise * np.linspace(1, 2, count)[:, None, None, None]).astype(np.float32)


def tensors(given: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
    """From ONNX Runtime without skdeploy."""
    proto = ir.to_proto(large())
    proto.graph.output.extend(value for value in proto.graph.value_info if value.name in NAMES)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(NAMES, session.run(NAMES, {"input": given}), strict=True))


def observed(given: NDArray[np.float32], method: CalibrationMethod, threads: int = 2) -> Mapping[str, Observation]:
    feeds = (({"input": given[at : at + 2]}, len(given[at : at + 2])) for at in range(0, len(given), 2))
    options: Any = {"means": NAMES, "channel_maxima": NAMES, "threads": threads}
    return observe(large(), NAMES, feeds, len(given), method=method, **options)


def test_large_maps_that_are_never_negative_are_reduced_in_the_graph() -> None:
    model = large()
    assert set(reduce_maps(model, NAMES, counted=True)) == IN_GRAPH


@pytest.mark.parametrize("method", [CalibrationMethod.MINMAX, CalibrationMethod.MSE])
def test_the_range_and_the_channels_are_those_of_all_values(method: CalibrationMethod) -> None:
    given = images(5)
    seen = observed(given, method)
    for name, values in tensors(given).items():
        found, largest = seen[name], np.abs(values).max(axis=(0, 2, 3))
        assert (found.minimum, found.maximum) == (values.min(), values.max())
        assert found.channel_max is not None
        assert np.array_equal(found.channel_max, largest)
        # 10,100 float32 summands in whatever order: 1e-5 is a hundred roundings of the last bit.
        assert found.channel_mean is not None
        assert np.allclose(found.channel_mean, values.mean(axis=(0, 2, 3), dtype=np.float64), rtol=1e-5, atol=1e-6)


def test_some_rows_and_columns_of_a_large_map_are_counted_and_all_of_a_small_one() -> None:
    given = images(4)
    seen = observed(given, CalibrationMethod.MSE)
    for name, values in tensors(given).items():
        step = 1 if name == "pooled" else 2
        histogram = MagnitudeHistogram()
        for image in values:
            histogram.update(image[None, :, ::step, ::step], (float(values.min()), float(values.max())))
        assert seen[name].threshold == threshold(histogram, CalibrationMethod.MSE)


@pytest.mark.parametrize("size", [(8, 100, 101), (2048, 7, 7), (64, 112, 112), (100_000, 2, 2), (1, 1, 1)])
def test_counted_places_are_as_many_as_may_be(size: tuple[int, int, int]) -> None:
    def counted(step: int) -> int:
        return size[0] * len(range(0, size[1], step)) * len(range(0, size[2], step))

    step = apart(size)
    assert counted(step) <= MOST_COUNTED or counted(step) == size[0]
    assert step == 1 or counted(step - 1) > MOST_COUNTED


def test_threads_change_nothing() -> None:
    given = images(5)
    one, many = (observed(given, CalibrationMethod.MSE, threads) for threads in (1, 3))
    for name in NAMES:
        means = [seen[name].channel_mean for seen in (one, many)]
        assert means[0] is not None
        assert means[1] is not None
        assert means[0].tobytes() == means[1].tobytes()
        assert (one[name].threshold, one[name].maximum) == (many[name].threshold, many[name].maximum)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_found_where_it_is_not_counted(value: float) -> None:
    given = images(4)
    given[2, :, 51, 51] = value  # the rows and columns that are counted are even
    with pytest.raises(CalibrationError, match=r"(relu|chosen) .* is not finite .* image 2\n"):
        observe(large(), sorted(IN_GRAPH), iter([({"input": given}, 4)]), 4, method=CalibrationMethod.MSE)


SIGNS = """
<ir_version: 10, opset_import: ["" : 19]>
signs (float[1,2,4,4] input) => (float[1,2,4,4] last)
<float[1] up = {1.0}, float[1] down = {-1.0}, float zero = {0.0}>
{
  yes_relu = Relu(input)
  yes_pool = AveragePool<kernel_shape=[1,1]>(yes_relu)
  yes_scaled = Mul(yes_pool, up)
  no_scaled = Mul(yes_pool, down)
  yes_clip = Clip(input, zero)
  no_clip = Clip(input)
  yes_both = Concat<axis=1>(yes_clip, yes_scaled)
  no_both = Concat<axis=1>(yes_clip, no_scaled)
  no_less = Sub(yes_relu, yes_pool)
  no_halves, no_others = Split<axis=1, num_outputs=2>(no_both)
  last = Identity(no_less)
}
"""


def test_signs_follow_from_the_operators() -> None:
    model = ir.from_proto(onnx.parser.parse_model(SIGNS))
    found = never_negative(model.graph)
    assert found == {
        value.name for node in model.graph for value in node.outputs if (value.name or "").startswith("yes")
    }

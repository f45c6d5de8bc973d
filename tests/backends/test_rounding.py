"""FP16 in ONNX Runtime on a CPU: what it does by itself, and what it does with explicit rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from skdeploy.backends import onnxruntime as backend
from skdeploy.backends import rounding
from skdeploy.backends.rounding import EXACT_ON_HALF, RoundNarrow, WithoutRange
from skdeploy.passes.half import HalfPrecision
from skdeploy.passes.trace_options import TraceOptions
from tests.backends.rounding_graphs import FLOAT, HALF, LEVELS, TO_FLOAT, TO_HALF, execute, graph, node, rounded
from tests.conftest import TinySpec
from tests.graphs.networks import Array, card, images, traced


def squared_and_halved() -> ir.Model:
    """x * x * 0.5 in FP16: for 300, 90000 is beyond 65504 and 45000 is not."""
    nodes = [TO_HALF, node("Mul", "h h", "s"), node("Mul", "s half", "r"), TO_FLOAT]
    return graph(nodes, [4], half=np.float16(0.5))


X = np.array([300, 1 / 3, 2.0**-9, 1001], np.float32)


def test_onnxruntime_alone_neither_rounds_nor_overflows() -> None:
    """The fact that this pass exists for. If this fails, ONNX Runtime has FP16 kernels on this CPU: see if the pass can go."""
    (found,) = execute(squared_and_halved(), X)
    exact = X.astype(np.float16).astype(np.float64) ** 2 * 0.5
    np.testing.assert_allclose(found, exact, rtol=2.0**-11 * 1.01)  # only the last cast rounds, to 11 bits
    assert found[0] == 45000


@pytest.mark.parametrize("level", LEVELS, ids=str)
def test_with_explicit_rounding_it_does_what_numpy_does_in_float16(level: ort.GraphOptimizationLevel) -> None:
    (found,) = execute(rounded(squared_and_halved()), X, level)
    half = X.astype(np.float16)
    with np.errstate(over="ignore"):
        expected = half * half * np.float16(0.5)
    assert expected.dtype == np.float16
    assert np.isinf(expected[[0, 3]]).all()
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul"])
@pytest.mark.parametrize("level", LEVELS, ids=str)
def test_each_sum_and_product_is_rounded_once(operator: str, level: ort.GraphOptimizationLevel) -> None:
    """Bit for bit: the sum or product of two FP16 numbers is exact or correctly rounded in FP32, then in FP16."""
    generator = np.random.default_rng(0)
    left = (generator.standard_normal(4096) * 2.0 ** generator.integers(-20, 10, 4096)).astype(np.float16)
    right = (generator.standard_normal(4096) * 2.0 ** generator.integers(-10, 8, 4096)).astype(np.float16)
    nodes = [TO_HALF, node(operator, "h c", "r"), TO_FLOAT]
    (found,) = execute(rounded(graph(nodes, [4096], c=right)), left.astype(np.float32), level)
    with np.errstate(over="ignore"):
        expected = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}[operator](left, right)
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def integer_convolution(relu: bool) -> tuple[ir.Model, Array, Array]:
    """A convolution of small integers, exact in FP32, whose sums do not fit FP16; its input and its exact result."""
    generator = np.random.default_rng(0)
    x = generator.integers(-128, 128, (1, 16, 9, 9))
    w = generator.integers(-64, 65, (4, 16, 3, 3))
    exact = np.zeros((1, 4, 7, 7), np.int64)
    for row in range(3):
        for column in range(3):
            window = x[:, :, row : row + 7, column : column + 7]
            exact += np.einsum("nchw,oc->nohw", window, w[:, :, row, column])
    last = "a" if relu else "r"
    nodes = [TO_HALF, node("Conv", "h w", last), *([node("Relu", "a", "r")] if relu else []), TO_FLOAT]
    return graph(nodes, [1, 16, 9, 9], w=w.astype(np.float16)), x.astype(np.float32), exact


@pytest.mark.parametrize("relu", [False, True], ids=["conv", "conv-relu"])
@pytest.mark.parametrize("level", LEVELS, ids=str)
def test_a_convolution_accumulates_in_float32_and_rounds_once(relu: bool, level: ort.GraphOptimizationLevel) -> None:
    model, x, exact = integer_convolution(relu)
    (found,) = execute(rounded(model), x, level)
    expected = (np.maximum(exact, 0) if relu else exact).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = expected.astype(np.float16).astype(np.float32)
    assert np.isinf(expected).any()  # some leave the range of FP16
    assert (expected != np.maximum(exact, 0 if relu else exact.min())).mean() > 0.2  # and many of its precision
    np.testing.assert_array_equal(found, expected)


def test_onnxruntime_alone_does_not_round_a_convolution() -> None:
    """The middle of two convolutions is where it matters: the last cast rounds in any case."""
    _, x, exact = integer_convolution(relu=False)
    model, _, _ = integer_convolution(relu=False)
    nodes = [TO_HALF, node("Conv", "h w", "a"), node("Mul", "a c", "r"), TO_FLOAT]
    weights = model.graph.initializers["w"].const_value
    assert weights is not None
    scaled = graph(nodes, [1, 16, 9, 9], w=weights.numpy(), c=np.float16(2.0**-6))
    (alone,) = execute(scaled, x)
    assert np.isfinite(alone).all()
    (explicit,) = execute(rounded(scaled), x)
    assert np.array_equal(np.isinf(explicit), np.abs(exact) >= 65520)  # half way between 65504 and the next, 65536


def rounding_everywhere(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> ir.Model:
    with monkeypatch.context() as patch:
        patch.setattr(rounding, "_needs_rounding", lambda node, value: True)
        return rounded(model)


def casts(model: ir.Model) -> int:
    return sum(node.op_type == "Cast" for node in model.graph)


@pytest.mark.parametrize(
    ("operators", "spared"),
    [
        ([node("Add", "h c", "a"), node("Relu", "a", "r")], 1),
        ([node("Mul", "h c", "a"), node("MaxPool", "a", "r", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)], 1),
        ([node("Mul", "h c", "a"), node("Transpose", "a", "r", perm=[0, 2, 3, 1])], 1),
        ([node("Mul", "h c", "a"), node("Flatten", "a", "r")], 1),
        ([node("Mul", "h c", "a"), node("Reshape", "a to", "r")], 1),
        ([node("Mul", "h c", "a"), node("Relu", "a", "b"), node("Identity", "b", "r")], 2),
        ([node("Mul", "h c", "a"), node("Relu", "a", "b"), node("Sub", "b a", "r")], 0),  # two users: nothing is spared
    ],
    ids=["Relu", "MaxPool", "Transpose", "Flatten", "Reshape", "Relu-Identity", "Relu-and-another"],
)
def test_rounding_is_left_out_only_where_it_changes_nothing(
    operators: list[onnx.NodeProto], spared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    shape = [2, 3, 8, 8]
    x = (generator.standard_normal(shape) * 2.0 ** generator.integers(-12, 17, shape)).astype(np.float32)
    x[0, 0, 0, :4] = 0, -0.0, np.nan, -7e4

    def build() -> ir.Model:
        return graph([TO_HALF, *operators, TO_FLOAT], shape, c=np.float16([[[[1.37]]]]), to=np.array([2, -1]))

    sparing, everywhere = rounded(build()), rounding_everywhere(build(), monkeypatch)
    (found,), (expected,) = execute(sparing, x), execute(everywhere, x)
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found, execute(build(), x)[0], equal_nan=True)  # rounding matters for these numbers
    assert casts(everywhere) - casts(sparing) == 2 * spared


def test_every_network_is_rounded_as_if_everywhere(tiny_spec: TinySpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def halved() -> ir.Model:
        return HalfPrecision()(traced(card(tiny_spec(3)), TraceOptions(exporter="torchscript"))).model

    sparing, everywhere = rounded(halved()), rounding_everywhere(halved(), monkeypatch)
    for model in (sparing, everywhere):
        model.graph.inputs[0].name = "x"
    x = images(3)
    np.testing.assert_array_equal(execute(sparing, x)[0], execute(everywhere, x)[0])
    assert casts(sparing) < casts(everywhere)


def test_no_arithmetic_is_taken_for_exact() -> None:
    rounding_ones = "Conv Gemm MatMul Add Sub Mul Sigmoid Softmax ReduceMean Relu"
    assert not EXACT_ON_HALF & set(rounding_ones.split())


def test_inputs_and_outputs_may_be_half_themselves() -> None:
    nodes = [node("Mul", "x x", "s"), node("Mul", "s c", "y")]
    half = X.astype(np.float16)
    (found,) = execute(rounded(graph(nodes, [4], kind=HALF, result=HALF, c=np.float16(0.5))), half)
    with np.errstate(over="ignore"):
        expected = half * half * np.float16(0.5)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, expected)
    single = graph(nodes, [4], kind=HALF, result=HALF, c=np.float16(0.5))
    WithoutRange()(single)
    (found,) = execute(single, X)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, X * X * np.float32(0.5))


def test_an_output_with_more_users_is_rounded_for_all_of_them() -> None:
    nodes = [node("Mul", "x x", "y"), node("Mul", "y c", "z"), node("Relu", "y", "p")]
    model = rounded(graph(nodes, [4], outputs=("y", "z", "p"), kind=HALF, result=HALF, c=np.float16(0.5)))
    half = X.astype(np.float16)
    with np.errstate(over="ignore"):
        square = half * half
        expected = [square, square * np.float16(0.5), np.maximum(square, 0)]
    for found, wanted in zip(execute(model, half), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_an_output_that_a_cast_makes_is_kept() -> None:
    nodes = [node("Mul", "x x", "s"), node("Cast", "s", "y", to=HALF)]
    nodes += [node("Mul", "y c", "r"), node("Cast", "r", "z", to=FLOAT)]
    model = graph(nodes, [4], outputs=("y",), result=HALF, c=np.float16(0.5))
    model.graph.outputs.append(next(value for node in model.graph for value in node.outputs if value.name == "z"))
    square, scaled = execute(rounded(model), X)
    with np.errstate(over="ignore"):
        expected = (X * X).astype(np.float16)
    assert square.dtype == np.float16
    np.testing.assert_array_equal(square, expected)
    np.testing.assert_array_equal(scaled, (expected * np.float16(0.5)).astype(np.float32))


def test_a_graph_without_half_is_left_alone() -> None:
    model = graph([node("Mul", "x c", "y")], [4], c=np.float32(0.5))
    before = ir.to_proto(model).SerializeToString()
    result = RoundNarrow()(model)
    assert not result.modified
    assert ir.to_proto(result.model).SerializeToString() == before


def test_the_backend_rounds_half_graphs_by_itself(tmp_path: Path) -> None:
    """The session that parity is measured with does not run FP16 graphs unrounded."""
    ir.save(squared_and_halved(), tmp_path / "half.onnx")
    with backend.open_session(tmp_path / "half.onnx") as session:
        found = session.run({"x": X})["y"]
    np.testing.assert_array_equal(found, execute(rounded(squared_and_halved()), X)[0])
    assert np.isinf(found[0])


# Without the end of FP16's range


def test_without_range_nothing_is_rounded_and_nothing_overflows() -> None:
    model = squared_and_halved()
    assert WithoutRange()(model).modified
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    (found,) = execute(model, X)
    np.testing.assert_array_equal(found, X * X * np.float32(0.5))

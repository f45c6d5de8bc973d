"""ONNX Runtime's INT8 kernels against Q/DQ arithmetic: one step at most, and what would be more is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from skdeploy.backends.emulation import (
    CHANNELS,
    FORCED,
    difference_in_words,
    emulation_error,
    extreme_convolution,
    int8_layers,
    int8_tensors,
    saturates,
    steps_apart,
    teacher_forced,
)
from skdeploy.backends.onnxruntime import DEFAULT, INT8_KERNELS, OnnxRuntimeSession, load_graph, open_model
from skdeploy.core.architecture import NetworkSpec
from skdeploy.core.errors import UsageError
from tests.graphs.int8_networks import (
    THREE,
    TWO,
    feeds_for,
    int8,
    pixels,
    single,
    spec_of,
)
from tests.graphs.networks import (
    Array,
)
from tests.graphs.numpy_int8 import (
    evaluate,
)

KINDS = [np.uint8, np.int8]


def serialised(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString()


def feeds(model: ir.Model, structure: NetworkSpec) -> dict[str, Array]:
    return feeds_for(model, spec_of(structure), pixels(6))


@pytest.mark.parametrize("structure", [TWO, THREE], ids=["two", "three"])
def test_int8_kernels_are_at_most_a_step_from_the_graph(structure: NetworkSpec) -> None:
    model = int8(structure)
    before = serialised(model)
    report = emulation_error(model, feeds(model, structure))
    assert report.worst_steps <= 1
    assert report.share_different < 0.01  # results that lie beside the middle between two steps
    # Convolutions with a Relu have no INT8 kernel: saturation at -128 is no Relu. Here these are the reduce layers.
    assert report.int8_layers >= 8
    assert serialised(model) == before


def test_the_exact_run_is_that_of_numpy() -> None:
    """Reference of the above: integers equal, but where FP32 sums in another order fall on the other side of a middle."""
    model = int8(TWO)
    given = feeds(model, TWO)
    expected = evaluate(ir.to_proto(model), given)
    found = int8_tensors(model, given)
    assert len(found) > 15
    report = steps_apart({name: expected[name] for name in found}, found)
    assert report.worst_steps <= 1
    assert report.share_different < 1e-3


def forced_run(model: ir.Model, exact: dict[str, Array], given: dict[str, Array]) -> dict[str, Array]:
    inputs = {**given, **{f"{name}{FORCED}": values for name, values in exact.items()}}
    with OnnxRuntimeSession(serialised(model), "cpu", None, config=INT8_KERNELS) as session:
        return session.run(inputs)


def test_a_wrong_scale_on_one_side_is_found_at_its_layer() -> None:
    """And at no other: every layer is fed with the integers of the exact run."""
    model = int8(TWO)
    given = feeds(model, TWO)
    exact = int8_tensors(model, given)
    forced = teacher_forced(model)
    weight = next(node for node in forced.graph if node.name == "stages.1.0.reduce.conv/weight_dequantized")
    scale = weight.inputs[1]
    assert scale is not None
    assert scale.const_value is not None
    scale.const_value = ir.tensor(scale.const_value.numpy() * np.float32(1.05), name=scale.name)
    found = forced_run(forced, exact, given)
    report = steps_apart(exact, found)
    assert report.worst_steps > 1
    assert report.tensor == "stages.1.0.reduce.relu/Relu_quantized"
    others = {tensor: values for tensor, values in exact.items() if tensor != report.tensor}
    assert steps_apart(others, found).worst_steps <= 1


def test_without_forcing_differences_grow() -> None:
    """What forcing is for: left alone, a step in an early layer becomes more in later ones."""
    model = int8(TWO)
    given = feeds(model, TWO)
    exact = int8_tensors(model, given)
    copy = model.clone()
    copy.graph.outputs.extend(v for node in copy.graph for v in node.outputs if v.name in exact)
    with OnnxRuntimeSession(serialised(copy), "cpu", None, config=INT8_KERNELS) as session:
        free = steps_apart(exact, session.run(given))
    assert free.share_different > emulation_error(model, given).share_different


def test_differences_are_counted_in_steps_and_named() -> None:
    expected = {"a": np.array([-128, 0, 127], np.int8), "b": np.array([5], np.int8)}
    report = steps_apart(expected, {"a": np.array([127, 0, 127], np.int8), "b": np.array([4], np.int8)})
    assert (report.worst_steps, report.tensor, report.share_different) == (255, "a", 0.5)
    equal = steps_apart(expected, expected)
    assert (equal.worst_steps, equal.share_different) == (0, 0.0)


def test_a_graph_without_int8_is_refused() -> None:
    model = single(TWO)
    with pytest.raises(UsageError, match="nothing in it is INT8"):
        emulation_error(model, feeds(model, TWO))


def test_a_graph_with_float16_is_refused() -> None:
    model = int8(TWO, half=True)
    with pytest.raises(UsageError, match="is FP16"):
        emulation_error(model, feeds(model, TWO))


# Saturation


@pytest.mark.parametrize("kind", KINDS)
def test_the_probe_runs_an_int8_kernel_and_its_sums_are_the_integers(kind: type, tmp_path: Path) -> None:
    model, x = extreme_convolution(kind)
    with OnnxRuntimeSession(
        serialised(model), "cpu", None, config=DEFAULT, optimised_graph=tmp_path / "optimised.onnx"
    ):
        assert int8_layers(load_graph(tmp_path / "optimised.onnx")) == 1
    values = evaluate_extreme(ir.to_proto(model), x)
    with open_model(model) as session:
        np.testing.assert_array_equal(session.run({"x": x})["y"], values)


def integers(proto: onnx.ModelProto, x: Array) -> tuple[Array, Array]:
    weight = next(onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == "weight_int8")
    return weight[:, :, 0, 0].astype(np.int64), x[0].reshape(CHANNELS, -1).astype(np.int64)


def evaluate_extreme(proto: onnx.ModelProto, x: Array) -> Array:
    weight, values = integers(proto, x)
    return stepped(weight @ values, x)


def stepped(sums: Array, x: Array) -> Array:
    return (np.clip(np.rint(sums / 2**14), -128, 127) * 2**14).astype(np.float32).reshape(1, -1, *x.shape[2:])


@pytest.mark.parametrize("kind", KINDS)
def test_sums_of_pairs_in_16_bits_would_be_seen(kind: type) -> None:
    """What AVX2 does without VNNI: unsigned by signed bytes, each pair of products added in 16 bits, saturating.

    Signed activations are made unsigned by adding 128, and 128 times the sum of the weights is subtracted again.
    """
    model, x = extreme_convolution(kind)
    weight, values = integers(ir.to_proto(model), x)
    offset = 128 if kind is np.int8 else 0
    products = weight[:, :, None] * (values + offset)[None]
    pairs = np.clip(products.reshape(len(weight), CHANNELS // 2, 2, -1).sum(axis=2), -(2**15), 2**15 - 1)
    sums = pairs.sum(axis=1) - offset * weight.sum(axis=1)[:, None]
    exact = evaluate_extreme(ir.to_proto(model), x)
    reason = difference_in_words(stepped(sums, x), exact, np.dtype(kind).name)
    assert np.dtype(kind).name in reason
    assert "saturates on this CPU" in reason
    assert "16 bits" in reason


def vnni() -> bool:
    """Whether /proc/cpuinfo, where there is one, has instructions that add four products in 32 bits."""
    path = Path("/proc/cpuinfo")
    return path.exists() and any(flag in path.read_text() for flag in ("avx512_vnni", "avx_vnni"))


@pytest.mark.skipif(not vnni(), reason="this CPU has no VNNI, or is not told here: it may saturate or not")
def test_a_cpu_with_vnni_does_not_saturate() -> None:
    assert saturates() == ""


def test_equal_sums_give_no_reason() -> None:
    assert difference_in_words(np.ones(3), np.ones(3), "int8") == ""

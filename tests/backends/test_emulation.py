"""ONNX Runtime's INT8 kernels against Q/DQ arithmetic: one step at most, and what would be more is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from skdeploy.backends.emulation import CHANNELS, difference_in_words, extreme_convolution, int8_layers, saturates
from skdeploy.backends.onnxruntime import DEFAULT, INT8_KERNELS, OnnxRuntimeSession, load_graph, open_model
from skdeploy.core.architecture import NetworkSpec
from skdeploy.ir.qdq import QUANTIZE
from tests.graphs.int8_networks import THREE, TWO, feeds_for, int8, pixels, spec_of
from tests.graphs.networks import Array
from tests.graphs.numpy_int8 import evaluate

KINDS = [np.uint8, np.int8]


def serialised(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString()


def feeds(model: ir.Model, structure: NetworkSpec) -> dict[str, Array]:
    return feeds_for(model, spec_of(structure), pixels(6))


def exact_run(model: ir.Model, given: dict[str, Array]) -> dict[str, Array]:
    """Every INT8 activation by the graph's own Q/DQ arithmetic."""
    copy = model.clone()
    names = [node.outputs[0].name or "" for node in copy.graph if node.op_type == QUANTIZE]
    with open_model(copy, also=names) as session:
        found = session.run(given)
    return {name: found[name] for name in names}


def teacher_forced(model: ir.Model) -> ir.Model:
    """A copy in which every INT8 activation is an output, and its readers read an input named ``<tensor>_forced`` instead: each
    layer of a run gets the exact run's values, so every difference is that of one layer, and does not grow on the way.
    """
    copy = model.clone()
    for value in [node.outputs[0] for node in copy.graph if node.op_type == QUANTIZE]:
        given = ir.Value(name=f"{value.name}_forced", shape=value.shape, type=value.type)
        copy.graph.inputs.append(given)
        for use in list(value.uses()):
            use.node.replace_input_with(use.idx, given)
        copy.graph.outputs.append(value)
    return copy


def kernels_run(
    forced: ir.Model, exact: dict[str, Array], given: dict[str, Array], optimised: Path
) -> dict[str, Array]:
    """The INT8 activations by ONNX Runtime's INT8 kernels; ``optimised`` is where it writes the graph that it runs."""
    inputs = {**given, **{f"{name}_forced": values for name, values in exact.items()}}
    config, source = INT8_KERNELS, serialised(forced)
    with OnnxRuntimeSession(source, "cpu", None, config=config, optimised_graph=optimised) as session:
        return session.run(inputs)


def steps_apart(expected: dict[str, Array], found: dict[str, Array]) -> dict[str, Array]:
    return {name: np.abs(found[name].astype(int) - values.astype(int)) for name, values in expected.items()}


@pytest.mark.parametrize("structure", [TWO, THREE], ids=["two", "three"])
def test_int8_kernels_are_at_most_a_step_from_the_graph(structure: NetworkSpec, tmp_path: Path) -> None:
    """Both round a layer's result to the nearest step, from sums in FP32 and in INT32: a result beside the middle between two
    steps may go either way.
    """
    model = int8(structure)
    given = feeds(model, structure)
    exact = exact_run(model, given)
    found = kernels_run(teacher_forced(model), exact, given, tmp_path / "optimised.onnx")
    apart = np.concatenate([steps.ravel() for steps in steps_apart(exact, found).values()])
    assert apart.max() <= 1
    assert np.count_nonzero(apart) < 0.01 * apart.size
    # Convolutions with a Relu have no INT8 kernel: saturation at -128 is no Relu. Here these are the reduce layers.
    assert int8_layers(load_graph(tmp_path / "optimised.onnx")) >= 8


def test_the_exact_run_is_that_of_numpy() -> None:
    """Reference of the above: integers equal, but where FP32 sums in another order fall on the other side of a middle."""
    model = int8(TWO)
    given = feeds(model, TWO)
    found = exact_run(model, given)
    assert len(found) > 15
    apart = np.concatenate([s.ravel() for s in steps_apart(found, evaluate(ir.to_proto(model), given)).values()])
    assert apart.max() <= 1
    assert np.count_nonzero(apart) < 1e-3 * apart.size


def test_a_wrong_scale_on_one_side_is_found_at_its_layer_and_no_other(tmp_path: Path) -> None:
    model = int8(TWO)
    given = feeds(model, TWO)
    exact = exact_run(model, given)
    forced = teacher_forced(model)
    weight = next(node for node in forced.graph if node.name == "stages.1.0.reduce.conv/weight_dequantized")
    scale = weight.inputs[1]
    assert scale is not None
    assert scale.const_value is not None
    scale.const_value = ir.tensor(scale.const_value.numpy() * np.float32(1.05), name=scale.name)
    apart = steps_apart(exact, kernels_run(forced, exact, given, tmp_path / "optimised.onnx"))
    assert [name for name, steps in apart.items() if steps.max() > 1] == ["stages.1.0.reduce.relu/Relu_quantized"]


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

"""Real networks of TensorRT-RTX against graphs that say the same, and graphs that say something narrower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from skdeploy import engines
from skdeploy.core.errors import EngineError
from skdeploy.engines._api import Network
from skdeploy.engines.definition import prove_definition
from skdeploy.engines.proof import PrecisionProof, read_graph
from skdeploy.quant.macs import macs_of
from tests.graphs.int8_networks import TWO, int8
from tests.graphs.small_files import save

pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")

FIRST, SECOND = "stem.conv/Conv", "stages.0.0.conv/Conv"


def proved(path: Path, says: Path) -> PrecisionProof:
    """The network that TensorRT-RTX makes of ``path``, against the graph ``says``."""
    trt = engines.load("tensorrt_rtx")
    logger = vars(trt)["Logger"](vars(trt)["Logger"].ERROR)
    builder = trt.Builder(logger)
    network: Network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.__members__["STRONGLY_TYPED"]))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path))
    return prove_definition(network, read_graph(says))


@pytest.fixture
def two_convolutions(tmp_path: Path) -> Callable[..., Path]:
    """x -> Conv -> Conv -> y in FP16; ``wide`` has the second in FP32, between casts."""

    def write(*, wide: bool) -> Path:
        rng = np.random.default_rng(0)
        second_type = np.float32 if wide else np.float16
        weights = {
            "w1": rng.standard_normal((4, 3, 3, 3)).astype(np.float16),
            "w2": rng.standard_normal((8, 2, 3, 3)).astype(second_type),
        }
        nodes = [helper.make_node("Conv", ["x", "w1"], ["a"], name=FIRST, pads=[1] * 4)]
        if wide:
            nodes.append(helper.make_node("Cast", ["a"], ["a32"], name="up", to=onnx.TensorProto.FLOAT))
        nodes.append(
            helper.make_node(
                "Conv", ["a32" if wide else "a", "w2"], ["b" if wide else "y"], name=SECOND, pads=[1] * 4, group=2
            )
        )
        if wide:
            nodes.append(helper.make_node("Cast", ["b"], ["y"], name="down", to=onnx.TensorProto.FLOAT16))
        half = onnx.TensorProto.FLOAT16
        path, inputs, outputs = tmp_path / f"{wide}.onnx", {"x": ("batch", 3, 8, 8)}, {"y": ("batch", 8, 8, 8)}
        return save(path, nodes, inputs, outputs, weights, dtype=half)

    return write


@pytest.mark.parametrize(("graph", "precision"), [("fp32", "fp32"), ("fp16", "fp16")])
def test_a_network_of_one_type_is_wholly_of_it(graph: str, precision: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(graph)
    proof = proved(path, path)
    proof.check(path)
    assert proof.source == "definition"
    assert proof.share_of_layers == proof.share_of_macs == {precision: 1.0}
    assert (
        len(proof.weighted) == 16
    )  # stem; per unit 2 reduce and expand, 1 shortcut, 2 branches, 2 in the gate; classifier
    assert proof.unproven == ()


def test_one_convolution_left_in_fp32_is_named(two_convolutions: Callable[..., Path]) -> None:
    half, wide = two_convolutions(wide=False), two_convolutions(wide=True)
    proof = proved(wide, half)
    assert [(layer.node, layer.module, layer.found, layer.wanted) for layer in proof.wider] == [
        (SECOND, "stages.0.0.conv", "fp32", "fp16")
    ]
    # 4*3*9 and 8*2*9 weights, each at 64 places
    assert proof.share_of_macs == {"fp32": pytest.approx(144 / 252), "fp16": pytest.approx(108 / 252)}
    with pytest.raises(
        EngineError, match=r"1 of 2 .* run in a wider type(.|\n)*stages\.0\.0\.conv/Conv \(fp32"
    ) as refusal:
        proof.check(half)
    assert refusal.value.exit_code == 7
    assert "network definition" in refusal.value.message
    assert FIRST not in refusal.value.message


def test_wide_as_asked_or_narrower_is_no_fault(two_convolutions: Callable[..., Path]) -> None:
    half, wide = two_convolutions(wide=False), two_convolutions(wide=True)
    proof = proved(wide, wide)
    proof.check(wide)
    assert {layer.node: layer.found for layer in proof.weighted} == {FIRST: "fp16", SECOND: "fp32"}
    proof = proved(half, wide)
    proof.check(wide)
    assert proof.wider == ()


def test_a_convolution_in_no_layer_is_said_to_be_missing(two_convolutions: Callable[..., Path], fp16: Path) -> None:
    proof = proved(two_convolutions(wide=False), fp16)
    assert {layer.found for layer in proof.weighted} == {"missing"}
    assert "16 were found in no layer: node_Conv_33" in proof.text()
    assert proof.share_of_macs == {"missing": 1.0}


@pytest.mark.parametrize("half", [False, True], ids=["fp32 left", "fp16 left"])
def test_quantized_layers_are_int8_and_the_gates_are_not(half: bool, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    ir.save(int8(TWO, half=half), path)
    proof = proved(path, path)
    proof.check(path)
    gates = {layer.node: layer.found for layer in proof.weighted if "gate" in layer.node}
    assert set(gates.values()) == {"fp16" if half else "fp32"}
    assert {layer.found for layer in proof.weighted if layer.node not in gates} == {"int8"}
    assert proof.unproven == ()


def test_a_quantized_graph_built_without_its_quantizers_is_named(tmp_path: Path) -> None:
    """The FP32 network of the same names, against the graph that says INT8."""
    quantized, plain = tmp_path / "int8.onnx", tmp_path / "plain.onnx"
    ir.save(int8(TWO), quantized)
    ir.save(without_quantizers(ir.load(quantized)), plain)
    proof = proved(plain, quantized)
    gates = {layer.node for layer in proof.weighted if "gate" in layer.node}
    assert {layer.node for layer in proof.wider} == {layer.node for layer in proof.weighted} - gates
    with pytest.raises(EngineError, match=r"in the graph int8"):
        proof.check(quantized)


def without_quantizers(model: ir.Model) -> ir.Model:
    """The graph with each activation's pair of quantizers bypassed."""
    for node in list(model.graph):
        before = (
            node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] is not None else None
        )
        if before is not None and before.op_type == "QuantizeLinear":
            ir.convenience.replace_all_uses_with(node.outputs[0], before.inputs[0])
    return model


def test_macs_are_those_that_the_graph_counts(fp32: Path) -> None:
    """``quant/macs.py`` counts them from the same graph in its own way."""
    proof = proved(fp32, fp32)
    assert {layer.node: layer.macs for layer in proof.weighted} == macs_of(ir.load(fp32))


def test_a_graph_of_open_size_has_no_share_of_macs(dynamic_size: Path) -> None:
    proof = proved(dynamic_size, dynamic_size)
    assert proof.share_of_macs is None
    assert "MACs" not in proof.text()
    proof.check(dynamic_size)


def test_proof_survives_json(fp16: Path) -> None:
    proof = proved(fp16, fp16)
    assert PrecisionProof.model_validate_json(proof.model_dump_json()) == proof
    assert PrecisionProof.model_validate(proof.model_dump(mode="json")) == proof
    assert "not in the plan" in proof.text()


@pytest.mark.parametrize("content", [b"no model", None], ids=["other bytes", "nothing there"])
def test_a_file_that_is_no_graph_is_an_engine_error_that_names_it(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "cut.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=f"cannot read {path}"):
        read_graph(path)

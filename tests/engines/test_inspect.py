"""The engine inspector's JSON in the forms of TensorRT 10.x and 11.x, written here after NVIDIA's documentation.

The forms are those of real answers: fields of a CaskConvolution with "Weights" and "TacticName" (NVIDIA/TensorRT issues 3737
and 4020), Myelin's kinds with "Metadata" whose entries are apart by \\x1f, and 11.x's split fields ("Migrating IEngineInspector
Usage from TensorRT 10.x to 11.x").
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from skdeploy import engines
from skdeploy.core.errors import EngineError
from skdeploy.engines._log import Log
from skdeploy.engines.inspect import node_names, prove_information, prove_plan
from tests.conftest import require_backend
from tests.graphs.small_files import save

Json = dict[str, Any]
FORMS = pytest.mark.parametrize("version", [10, 11])
WORDS = {"int8": "Int8", "fp16": "Half", "fp32": "Float"}
LONG = {
    "int8": "Thirty-two wide channel vectorized row major Int8 format",
    "fp16": "Channel major FP16 format where channel % 8 == 0",
    "fp32": "Row major linear FP32",
}
KERNELS = {
    "int8": "sm80_xmma_fprop_implicit_gemm_i8i8_i8i32_f32_nhwckrsc_nhwc_tilesize128x128x64_stage3_tensor16x8x32",
    "fp16": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize64x64x64_stage4_tensor16x8x16",
    "fp32": "sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nhwckcrs_nhwc_tilesize32x32x16_stage4_ffma",
}
NODES = ("a.conv/Conv", "b.conv/Conv", "classifier/Gemm")


def tensor(version: int, name: str, precision: str, *, short: bool = False) -> Json:
    record: Json = {"Name": name, "Location": "Device", "Dimensions": [1, 8, 8, 8]}
    if version == 10:
        return record | {"Format/Datatype": WORDS[precision] if short else LONG[precision]}
    return record | {"Format": LONG[precision].replace(" FP16", "").replace(" Int8", ""), "Datatype": WORDS[precision]}


def layer(
    version: int,
    name: str,
    precision: str,
    nodes: tuple[str, ...],
    *,
    kind: str = "CaskConvolution",
    out: str = "",
    short: bool = False,
    **more: object,
) -> Json:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor(version, "x", precision, short=short)],
        "Outputs": [tensor(version, "y", out or precision, short=short)],
        "Metadata": "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes),
        **more,
    }


def answer(version: int, *layers: Json | str) -> str:
    top: Json = {"Layers": list(layers)}
    if version == 10:
        top["Bindings"] = ["images", "logits"]
    else:
        top["I/O Tensors"] = [
            {"Name": "images", "IOMode": "Input", "DataType": "Float", "Dimensions": [1, 3, 8, 8]},
            {"Name": "logits", "IOMode": "Output", "DataType": "Float", "Dimensions": [1, 4]},
        ]
    return json.dumps(top)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Two convolutions and a classifier that say FP16: 216, 576 and 256 weights at 64, 64 and 1 places."""
    half, rng = onnx.TensorProto.FLOAT16, np.random.default_rng(0)
    weights = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (512, 4)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name=NODES[0], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"], name="a.relu/Relu"),
        helper.make_node("Conv", ["r", "w2"], ["b"], name=NODES[1], pads=[1] * 4),
        helper.make_node("Flatten", ["b"], ["f"], name="flatten/Flatten"),
        helper.make_node("Gemm", ["f", "w3"], ["y"], name=NODES[2]),
    ]
    arrays = {name: rng.standard_normal(shape).astype(np.float16) for name, shape in weights.items()}
    return save(tmp_path / "graph.onnx", nodes, {"x": (1, 3, 8, 8)}, {"y": (1, 4)}, arrays, dtype=half)


def found(information: str, graph: Path) -> dict[str, str]:
    return {layer.node: layer.found for layer in prove_information(information, graph).weighted}


@FORMS
def test_a_plan_in_the_graphs_type_is_proven(version: int, graph: Path) -> None:
    proof = prove_information(
        answer(
            version,
            layer(version, "Reformatting CopyNode for Input Tensor 0 to a", "fp32", (), kind="Reformat", out="fp16"),
            layer(version, "a + relu", "fp16", (NODES[0], "a.relu/Relu"), TacticName=KERNELS["fp16"]),
            layer(version, "b", "fp16", (NODES[1],), Weights={"Type": "Half", "Count": 576}),
            layer(version, "__myl_Fc_myl0_3", "fp16", (NODES[2],), kind="gemm"),
        ),
        graph,
    )
    proof.check(graph)
    assert proof.source == "inspector"
    assert proof.share_of_layers == {"fp16": 1.0}
    assert proof.share_of_macs == {"fp16": 1.0}
    assert proof.unproven == ()
    assert "3 of 3" in proof.text()
    assert "engine inspector" in proof.text()


@FORMS
@pytest.mark.parametrize("told_by", ["kernel", "weights", "inputs"])
def test_a_convolution_that_runs_in_fp32_is_named(version: int, told_by: str, graph: Path) -> None:
    evidence: Json = {
        "kernel": {"TacticName": KERNELS["fp32"]},
        "weights": {"Weights": {"Type": "Float", "Count": 576}},
        "inputs": {},
    }[told_by]
    wide = layer(version, "b", "fp32", (NODES[1],), **evidence)
    proof = prove_information(
        answer(
            version,
            layer(version, "a", "fp16", (NODES[0],), TacticName=KERNELS["fp16"]),
            wide,
            layer(version, "c", "fp16", (NODES[2],), kind="gemm"),
        ),
        graph,
    )
    assert [layer.node for layer in proof.wider] == [NODES[1]]
    total = 64 * 216 + 64 * 576 + 2048
    assert proof.share_of_macs is not None
    assert proof.share_of_macs["fp32"] == pytest.approx(64 * 576 / total)
    with pytest.raises(EngineError, match=r"b\.conv/Conv \(fp32, in the graph fp16\)") as refusal:
        proof.check(graph)
    assert refusal.value.exit_code == 7


@FORMS
def test_int8_products_with_wide_outputs_and_biases_are_int8(version: int, graph: Path) -> None:
    """What a layer multiplies is its type, whatever it writes: a residual or a bias is not what counts."""
    layers = [
        layer(version, "a", "int8", (NODES[0],), out="fp32", TacticName=KERNELS["int8"]),
        layer(version, "b", "int8", (NODES[1],), Weights={"Type": "Int8"}, Bias={"Type": "Float"}),
    ]
    layers[1]["Inputs"].append(tensor(version, "residual", "fp16"))
    assert found(answer(version, *layers), graph) == {NODES[0]: "int8", NODES[1]: "int8", NODES[2]: "missing"}


@FORMS
def test_a_convolution_in_no_layer_is_told(version: int, graph: Path) -> None:
    proof = prove_information(answer(version, layer(version, "a", "fp16", NODES[:2])), graph)
    proof.check(graph)
    assert [layer.node for layer in proof.unproven] == [NODES[2]]
    assert f"1 were found in no layer: {NODES[2]}" in proof.text()


@FORMS
def test_what_a_layer_does_not_tell_is_unknown_and_counted(version: int, graph: Path) -> None:
    """A fused region whose kind and kernel tell nothing; a product whose inputs have several types."""
    mixed = layer(version, "b", "fp16", (NODES[1],), kind="gemm")
    mixed["Inputs"].append(tensor(version, "w", "fp32"))
    silent = layer(version, "c", "fp16", (NODES[2],), kind="gemm")
    silent["Inputs"] = [{"Name": "x", "Dimensions": [1]}]
    region = layer(version, "{ForeignNode[a...a]}", "fp16", (NODES[0],), kind="Myelin")
    proof = prove_information(answer(version, region, mixed, silent), graph)
    assert {layer.found for layer in proof.weighted} == {"unknown"}
    assert "the type of 3 is not known" in proof.text()
    assert proof.share_of_macs == {"unknown": 1.0}
    proof.check(graph)


TF32 = "sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize32x32x64_stage3"
MERGED = "a.conv/Conv + a.relu/Relu || b.conv/Conv"


@FORMS
@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        # Layers that merge convolutions speak for all of them: by metadata, or without any by the name alone.
        ([{"name": MERGED, "nodes": ()}], ("fp16", "fp16", "missing")),
        ([{}], ("fp16",) * 3),
        # A pointwise kernel in FP32 that carries the convolution's name, as part of its origin, is not the convolution.
        ([{"precision": "fp32", "kind": "kgen"}, {"TacticName": KERNELS["fp16"]}], ("fp16",) * 3),
        # Of several layers for one convolution the widest counts.
        ([{}, {"precision": "fp32"}, {}], ("fp32",) * 3),
        # TF32 is FP32 with less of a mantissa, and as wide.
        ([{"precision": "fp32", "TacticName": TF32}], ("fp32",) * 3),
        # 10.x without a context names the type alone.
        ([{"short": True}], ("fp16",) * 3),
    ],
    ids=["merged by name", "merged", "a layer beside", "several layers", "TF32", "short names"],
)
def test_the_layers_of_a_node_tell_its_type(
    version: int, layers: list[Json], expected: tuple[str, ...], graph: Path
) -> None:
    plain: Json = {"name": "x", "precision": "fp16", "nodes": NODES}
    information = answer(version, *(layer(version, **(plain | given)) for given in layers))
    assert found(information, graph) == dict(zip(NODES, expected, strict=True))


@FORMS
def test_names_alone_are_refused_as_no_evidence(version: int, graph: Path) -> None:
    with pytest.raises(EngineError, match="built without detailed profiling"):
        prove_information(answer(version, "a.conv/Conv + a.relu/Relu", "b.conv/Conv"), graph)


@pytest.mark.parametrize("text", ["", "not json", "[]", "{}", '{"Layers": 3}'])
def test_an_answer_without_layers_is_refused(text: str, graph: Path) -> None:
    with pytest.raises(EngineError, match="inspector's answer"):
        prove_information(text, graph)


def test_control_characters_as_they_are_do_no_harm(graph: Path) -> None:
    information = answer(11, layer(11, "x", "fp16", NODES)).replace("\\u001f", "\x1f")
    assert "\x1f" in information
    assert set(found(information, graph).values()) == {"fp16"}


@pytest.mark.parametrize(
    ("metadata", "name", "nodes"),
    [
        ("[ONNX Layer: a/Conv]\x1f[ONNX Layer: b/Relu]", "x", ("a/Conv", "b/Relu")),
        ("[ONNX Layer: a/Conv][ONNX Layer: a/Conv]", "x", ("a/Conv",)),
        ("[ONNX Layer: list[0]/Conv]", "x", ("list[0]/Conv",)),
        ("", "a/Conv + b/Relu || c/Conv", ("a/Conv", "b/Relu", "c/Conv")),
        ("", "", ()),
    ],
)
def test_nodes_of_a_layer(metadata: str, name: str, nodes: tuple[str, ...]) -> None:
    assert node_names(metadata, name) == nodes


class DynamicEngine:
    """An engine of two profiles, as a real one is asked: its inspector has no types for dynamic shapes without a context that
    has shapes, and the second profile's kernels are wider.
    """

    num_io_tensors, num_optimization_profiles = 2, 2

    def __init__(self, *, room: bool = True, inspects: bool = True) -> None:
        self.room, self.inspects = room, inspects
        self.profile, self.shapes = 0, dict[str, tuple[int, ...]]()

    def get_tensor_name(self, index: int) -> str:
        return ("images", "logits")[index]

    def get_tensor_mode(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name="INPUT" if name == "images" else "OUTPUT")

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        assert name == "images"
        return [[low + 8 * profile, 3, 8, 8] for low in (1, 4, 8)]

    def create_execution_context(self) -> Any:
        return self if self.room else None

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile, self.shapes = profile, {}
        return stream == 0

    def set_input_shape(self, name: str, shape: list[int]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def create_engine_inspector(self) -> Any:
        engine = self

        class Inspector:
            execution_context: object = None

            def get_engine_information(self, form: object) -> str:
                assert form == 1  # JSON
                best = (4 + 8 * engine.profile, 3, 8, 8)
                seen = self.execution_context is engine and engine.shapes == {"images": best}
                one = layer(10, "a", ("fp16", "fp32")[engine.profile], NODES)
                if not seen:  # as the real one: names, and formats "N/A due to dynamic shapes"
                    one["Inputs"], one["Outputs"], one["TacticName"] = [], [], ""
                    del one["Weights"]
                return answer(10, one)

        return Inspector() if self.inspects else None


INSPECTS: Any = SimpleNamespace(
    __name__="tensorrt", __version__="10.13.0", LayerInformationFormat=SimpleNamespace(__members__={"JSON": 1})
)


def test_an_engine_of_dynamic_batches_is_inspected_in_the_best_shapes_of_every_profile(graph: Path) -> None:
    engine: Any = DynamicEngine()
    proof = prove_plan(INSPECTS, Log(), engine, graph)
    assert proof.unproven == ()
    assert {found.found for found in proof.weighted} == {"fp32"}  # the second profile is the wider one
    assert engine.profile == 1


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (DynamicEngine(room=False), "tensorrt 10.13.0 cannot make a context to inspect"),
        (DynamicEngine(inspects=False), "tensorrt 10.13.0 cannot make an engine inspector"),
    ],
)
def test_an_engine_that_gives_no_inspector_or_context_is_told(engine: Any, words: str, graph: Path) -> None:
    with pytest.raises(EngineError, match=words):
        prove_plan(INSPECTS, Log(), engine, graph)


@pytest.mark.gpu
@pytest.mark.parametrize("name", engines.COMPILERS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_real_plan_is_proven_and_a_wider_one_named(
    name: str, precision: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from skdeploy.engines._build import BatchProfile, BuildOptions
    from skdeploy.engines._log import capture

    require_backend(name)
    path: Path = request.getfixturevalue(precision)
    plan = tmp_path / "x.engine"
    options = BuildOptions(BatchProfile(1, 2, 4))
    engines.build(name, path, plan, options, lambda _phase, _fraction: None)
    trt = engines.load(name)
    with capture(trt) as (logger, log):
        runtime = trt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(plan.read_bytes())
        assert engine is not None
        proof = prove_plan(trt, log, engine, path)
        proof.check(path)
        assert proof.wider == ()
        if precision == "fp32":
            # TensorRT-RTX may not tell its layers' types: then nothing may be claimed of them.
            narrow = prove_plan(trt, log, engine, request.getfixturevalue("fp16"))
            assert len(narrow.wider) + len(narrow.unproven) == len(narrow.weighted)

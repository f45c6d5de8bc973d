"""Parts of graphs: what is cut is the smallest that shows the fault, and plain ONNX Runtime runs it and shows it too."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from skdeploy.backends.onnxruntime import load_graph
from skdeploy.blame.blame import blame
from skdeploy.blame.chain import DEPLOY, FLOAT32, chain_of
from skdeploy.blame.inside import pairs_of
from skdeploy.blame.layers import Recording, decibels
from skdeploy.blame.layers_graph import GraphStage
from skdeploy.blame.layers_torch import TorchStage, same_outputs
from skdeploy.blame.repro import Parts
from skdeploy.bundle.folder import load_bundle
from skdeploy.core.errors import UsageError
from skdeploy.core.spec import Precision
from skdeploy.images.dataset import normalise
from skdeploy.parity.blame_report import BlameReport
from skdeploy.parity.cause import Int8Range, explain
from skdeploy.quant.quantize import quantize
from skdeploy.quant.ranges import load_ranges
from skdeploy.zoo.fold import fold
from tests.blame.faulty import bundle_of, changed, crops, edit_constant, spec_of
from tests.zoo import tiny_networks

Bundles = Callable[..., Path]
FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8


def plain_run(model: onnx.ModelProto | bytes, feeds: dict[str, Any], names: list[str] | None = None) -> dict[str, Any]:
    """ONNX Runtime itself, with Q/DQ as the graph says, and no code of skdeploy between."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = 1
    serialised = model if isinstance(model, bytes) else model.SerializeToString()
    session = ort.InferenceSession(serialised, options, providers=["CPUExecutionProvider"])
    names = names or [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def graph_stage(bundle: Path, name: str) -> GraphStage:
    (stage,) = [stage for stage in chain_of(load_bundle(bundle)) if stage.name == name]
    assert isinstance(stage, GraphStage)  # a chain has stages of torch too
    return stage


def saved(bundle: Path, folder: Path) -> BlameReport:
    spec = spec_of(bundle)
    return blame(chain_of(load_bundle(bundle)), crops(spec), spec, repro=folder)


def difference(folder: Path) -> tuple[float, float]:
    """What plain ONNX Runtime makes of a repro: the largest difference, and the largest expected value."""
    model = onnx.load(folder / "repro.onnx")
    onnx.checker.check_model(model, full_check=True)
    expected = dict(np.load(folder / "expected.npz"))
    found = plain_run(model, dict(np.load(folder / "inputs.npz")))
    assert found.keys() == expected.keys()
    ((name, array),) = found.items()
    return float(np.abs(array - expected[name]).max()), float(np.abs(expected[name]).max())


# ----- the repro


def test_of_a_wrong_weight_the_convolution_alone_is_cut_and_shows_it(copy_of: Bundles, tmp_path: Path) -> None:
    bundle = copy_of(FP32)
    edit_constant(bundle, "model.onnx", "stages.1.0.expand.conv.weight", lambda weight: weight[::-1])
    report = saved(bundle, tmp_path / "repro")
    assert report.repro == str(tmp_path / "repro")
    model = onnx.load(tmp_path / "repro/repro.onnx")
    assert [node.name for node in model.graph.node] == ["stages.1.0.expand.conv/Conv"]
    assert [value.name for value in model.graph.input] == ["stages.1.0.sk/Add_2"]
    error, largest = difference(tmp_path / "repro")
    assert error > 0.1 * largest
    # With the weight as it was, the same graph is right.
    right = {one.name: one for one in onnx.load(bundle / "model.traced.onnx").graph.initializer}
    for constant in model.graph.initializer:
        constant.CopyFrom(right[constant.name])
    onnx.save(model, tmp_path / "repro/repro.onnx")
    error, largest = difference(tmp_path / "repro")
    assert error < 1e-5 * largest  # the order of sums


def test_an_overflow_shows_on_a_cpu_without_fp16(tmp_path: Path) -> None:
    report = saved(bundle_of(FP16, scale=1e4), tmp_path)
    assert report.repro is not None
    found = plain_run(onnx.load(tmp_path / "repro.onnx"), dict(np.load(tmp_path / "inputs.npz")))
    assert any(np.isinf(array).any() for array in found.values())
    assert all(np.isfinite(array).all() for array in np.load(tmp_path / "expected.npz").values())


@pytest.mark.parametrize("half", [False, True])
def test_a_bad_scale_shows_with_the_tensor_before_it_as_input(half: bool, copy_of: Bundles, tmp_path: Path) -> None:
    bundle = copy_of(INT8, half=half)
    constant = "stages.1.0.reduce.relu/Relu_scale" + ("_fp16" if half else "")
    edit_constant(bundle, "model.int8.onnx", constant, lambda scale: scale / 8)
    report = saved(bundle, tmp_path / "repro")
    assert report.repro is not None
    operators = [node.op_type for node in onnx.load(tmp_path / "repro/repro.onnx").graph.node]
    assert operators.count("Conv") == 1
    assert operators.count("QuantizeLinear") == 1
    error, largest = difference(tmp_path / "repro")
    assert error > 0.5 * largest


def test_of_a_fault_in_torch_the_graph_that_was_traced_from_it_is_cut(copy_of: Bundles, tmp_path: Path) -> None:
    bundle = copy_of(FP32)
    wrong = "stages.0.0.sk.branches.1.conv"
    chain = list(chain_of(load_bundle(bundle)))

    def widen(network: Any) -> None:
        network.get_submodule(wrong.replace("conv", "bn")).eps = 0.5

    (training,) = [stage for stage in chain if stage.name == FLOAT32]
    assert isinstance(training, TorchStage)  # a chain has stages of graphs too
    folded = fold(changed(training.make(), widen))
    chain = [
        replace(stage, make=lambda: folded) if isinstance(stage, TorchStage) and stage.name == DEPLOY else stage
        for stage in chain
    ]
    # The graph in the bundle is that of the right deploy form: nothing in it shows the fault, and that is said.
    report = blame(chain, crops(spec_of(bundle)), spec_of(bundle), repro=tmp_path / "none")
    assert report.guilty == DEPLOY
    assert report.repro is None
    assert report.note.endswith("so no graph can be cut out that shows it")
    assert not (tmp_path / "none").exists()
    # A trace of the wrong one has the fault in it.
    for kind in ("weight", "bias"):
        parameter = folded.get_submodule(wrong).get_parameter(kind).numpy()
        edit_constant(bundle, "model.traced.onnx", f"{wrong}.{kind}", lambda _old, new=parameter: new)
    traced = [stage for stage in chain_of(load_bundle(bundle)) if stage.name == "model.traced.onnx"]
    report = blame(
        [traced[0] if stage.name == "model.traced.onnx" else stage for stage in chain],
        crops(spec_of(bundle)),
        spec_of(bundle),
        repro=tmp_path / "repro",
    )
    assert report.guilty == DEPLOY
    assert report.repro is not None
    error, largest = difference(tmp_path / "repro")
    assert error > 0.01 * largest


def test_the_readme_says_how_to_run_it_and_that_works(copy_of: Bundles, tmp_path: Path) -> None:
    bundle = copy_of(FP32)
    edit_constant(bundle, "model.onnx", "stages.1.0.expand.conv.weight", lambda weight: weight[::-1])
    report = saved(bundle, tmp_path / "repro")
    story, _, script = (tmp_path / "repro/README.txt").read_text().partition("Run it here")
    assert report.verdict in story
    code = script.partition("\n\n")[2]
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "repro", capture_output=True, text=True, check=True, timeout=60
    ).stdout
    error, _ = difference(tmp_path / "repro")
    assert "stages.1.0.expand.conv/Conv largest difference" in said
    assert float(said.split()[3]) == pytest.approx(error, rel=1e-3)


def test_without_a_fault_nothing_is_saved(tmp_path: Path) -> None:
    assert saved(bundle_of(FP32), tmp_path / "repro").repro is None
    assert not (tmp_path / "repro").exists()


# ----- running a graph in parts


@pytest.mark.parametrize(("precision", "name"), [(FP32, "model.onnx"), (INT8, "model.int8.onnx")])
@pytest.mark.parametrize("nodes", [1, 7, 10_000])
def test_a_graph_in_slices_gives_every_tensor_of_the_whole(
    precision: Precision, name: str, nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skdeploy.blame.repro.SLICE_NODES", nodes)
    bundle = bundle_of(precision)
    feeds = {"input": normalise(crops(spec_of(bundle)), spec_of(bundle).preprocess)}
    model = onnx.load(bundle / name)
    made = [output for node in model.graph.node for output in node.output]
    found = dict(Parts(load_graph(bundle / name)).run_in_slices(feeds, set(made), name))
    assert list(found) == made
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name not in known)
    for tensor, expected in plain_run(model, feeds, made).items():
        # float32 sums in another order where a slice ends; a value on the edge of two integers may then fall on the other side,
        # which is one of the 127 steps of a dequantized tensor's largest value, and of what is computed from it
        exact = 1 if expected.dtype == np.int8 else 1e-4 * max(1.0, float(np.abs(expected).max()))
        step = max(exact, float(np.abs(expected).max()) / 127) if precision is INT8 else exact
        assert np.abs(found[tensor].astype(np.float64) - expected).max() <= (
            step if nodes > 1 or precision is FP32 else 3 * step
        )


def test_a_graph_with_a_graph_inside_is_refused_by_the_nodes_name() -> None:
    body = onnx.parser.parse_graph("g () => (float y) { y = Constant<value = float {1.0}>() }")
    node = onnx.helper.make_node("If", ["c"], ["y"], name="choose/If", then_branch=body, else_branch=body)
    graph = onnx.helper.make_graph(
        [node],
        "main",
        [onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [])],
    )
    with pytest.raises(UsageError, match=r"choose/If \(If\) has a graph inside"):
        Parts(ir.from_proto(onnx.helper.make_model(graph)))


# ----- which tensors are the same


@pytest.mark.parametrize("variant", tiny_networks.VARIANTS)
def test_modules_that_are_said_to_give_the_same_do(variant: str, tmp_path: Path) -> None:
    network = tiny_networks.live(tiny_networks.VARIANTS[variant])
    deploy = fold(network)
    same = same_outputs(network)
    image = tiny_networks.images().numpy()
    outputs: dict[str, dict[str, Any]] = {"training": {}, "deploy": {}}
    for form, module, wanted in (("training", network, same.values()), ("deploy", deploy, same.keys())):
        stage = TorchStage(form, lambda module=module: module, lambda _pixels: image, double=True)
        stage.stream(np.zeros((4, 1, 1, 3), np.uint8), frozenset(wanted), outputs[form].__setitem__)
    compared = 0
    for name, array in outputs["deploy"].items():
        expected = outputs["training"][same[name]]
        assert array.shape == expected.shape
        assert np.abs(array - expected).max() <= 1e-9 * max(1.0, np.abs(expected).max())  # float64
        compared += 1
    convolutions = [name for name, module in deploy.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert {name for name in convolutions if not name.endswith("fc2")} <= outputs["deploy"].keys()
    assert compared > len(convolutions)


@pytest.mark.parametrize("half", [False, True])
def test_offsets_are_those_that_the_int8_graph_was_made_with(half: bool) -> None:
    bundle = bundle_of(INT8, half=half)
    stage = graph_stage(bundle, "model.int8.onnx")
    assert stage.offsets is not None
    made = quantize(load_graph(bundle / "model.onnx"), spec_of(bundle), load_ranges(bundle / "ranges.json"))
    assert stage.offsets() == made.offsets
    assert len(made.offsets) > 3


@pytest.mark.parametrize(
    ("precision", "name", "how", "least"),
    [
        (FP32, "model.traced.onnx", {}, 100.0),
        (FP16, "model.fp16.onnx", {}, 45.0),  # 66 dB a rounding, less where terms cancel
        (INT8, "model.int8.onnx", {}, 15.0),
        (INT8, "model.int8.onnx", {"half": True}, 15.0),
    ],
)
def test_every_tensors_own_error_is_that_of_its_precision(
    precision: Precision, name: str, how: dict[str, bool], least: float, tmp_path: Path
) -> None:
    bundle = bundle_of(precision, **how)
    found = graph_stage(bundle, name)
    before = next(stage for stage in chain_of(load_bundle(bundle)) if stage.name == found.before)
    assert not hasattr(before, "compiler")
    reference = found.twin or before
    assert isinstance(reference, TorchStage | GraphStage)  # not an engine, which has no tensors inside to compare
    image = crops(spec_of(bundle), 1)
    recording = Recording(tmp_path)
    pairs = pairs_of(found, reference)
    reference.stream(image, frozenset(pair.reference for pair in pairs), recording.put)
    own: dict[str, float] = {}

    def keep(measured: Any) -> None:
        value = decibels(recording.get(measured.pair.reference), measured.value)
        assert value is not None
        own[measured.pair.reference] = value

    found.stream_own(image, pairs, recording, keep)
    assert min(own.values()) > least, min(own, key=lambda key: own[key])
    assert "logits" in own or "classifier" in own
    if precision is FP16:  # each is compared after its rounding
        assert all(value < 85 for tensor, value in own.items() if tensor.endswith("/Conv"))
    convolutions = sum(node.op_type == "Conv" for node in found.model.graph)
    assert len(own) >= convolutions // 2


# ----- what an error looks like


RANDOM = np.random.default_rng(0).standard_normal((2, 6, 5, 4))


@pytest.mark.parametrize(
    ("found", "kind", "words"),
    [
        (RANDOM + 3.0, "offset", "off by 3"),
        (RANDOM * 1.25, "factor", "1.25 times"),
        (RANDOM[:, ::-1], "permuted channels", "in reverse order"),
        (RANDOM[:, [0, 1, 3, 2, 4, 5]], "permuted channels", "2 of 6 channels are permuted: 2 has 3, 3 has 2"),
        (RANDOM * np.arange(1.0, 7.0)[:, None, None] + 1, "channel factors", "from 1 to 6"),
        (np.where(RANDOM > 2, np.inf, RANDOM), "not finite", "infinite"),
        (np.full_like(RANDOM, np.nan), "not finite", "240 NaN"),
        (RANDOM[::-1], "differs", "without a simple pattern"),
        (np.random.default_rng(1).standard_normal(RANDOM.shape), "differs", "without a simple pattern"),
    ],
)
def test_an_error_is_explained_by_what_undoes_it(found: Any, kind: str, words: str) -> None:
    cause = explain(RANDOM, found)
    assert cause.kind == kind
    assert words in cause.words


def test_infinity_is_an_overflow_only_where_so_much_is_expected() -> None:
    assert explain(RANDOM * 1e5, np.where(RANDOM > 0.6, np.inf, RANDOM * 1e5)).kind == "overflow"
    assert explain(RANDOM, np.where(RANDOM > 0.6, np.inf, RANDOM)).kind == "not finite"


def test_saturation_is_told_from_an_error_of_the_same_size_inside_the_range() -> None:
    held = Int8Range(-0.5, 0.5)
    assert explain(RANDOM, np.clip(RANDOM, -0.5, 0.5), held).kind == "saturation"
    inside = np.clip(RANDOM, -0.4, 0.4)
    assert explain(inside, inside[:, :, ::-1], held).kind == "differs"


def test_more_numbers_than_values_explain_nothing() -> None:
    points = np.random.default_rng(2).standard_normal((1, 6, 1, 1))
    assert explain(points, np.random.default_rng(3).standard_normal((1, 6, 1, 1))).kind == "differs"


def test_decibels_are_those_of_the_definition_and_none_where_there_are_none() -> None:
    noisy = RANDOM + 0.01
    expected = 10 * np.log10(np.sum(RANDOM**2) / (RANDOM.size * 1e-4))
    assert decibels(RANDOM, noisy) == pytest.approx(expected)
    assert decibels(RANDOM, RANDOM) == 300.0
    assert decibels(RANDOM, RANDOM[:1]) is None
    assert decibels(RANDOM, np.where(RANDOM > 0, np.nan, RANDOM)) is None
    assert decibels(np.zeros(3), np.ones(3)) is None

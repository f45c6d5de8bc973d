"""Headroom: the maxima are those of torch, what is short is named, and the way out that is named works."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from skdeploy.backends.onnxruntime import open_model, open_session
from skdeploy.backends.rounding import RoundNarrow
from skdeploy.core.errors import PrecisionError
from skdeploy.core.spec import ModelSpec
from skdeploy.parity.headroom import measure_headroom
from skdeploy.parity.report import HeadroomReport
from skdeploy.passes.half import HalfPrecision
from skdeploy.passes.trace import trace
from skdeploy.passes.trace_options import TraceOptions
from skdeploy.zoo.fold import fold
from skdeploy.zoo.sknet import SKNet
from tests.conftest import TinySpec
from tests.graphs import schema_graphs
from tests.graphs.int8_networks import TWO, int8, normalised, pixels, spec_of
from tests.graphs.networks import FLOAT32_ERROR, Array, card, images, live, relative_error, run, torch_logits
from tests.graphs.numpy_int8 import evaluate
from tests.graphs.schema_graphs import MIDDLES, classifier
from tests.graphs.small_files import model_of

BATCHES = [(images(2, seed=1), 2), (images(3, seed=2), 3)]


@pytest.fixture
def tiny(tiny_spec: TinySpec) -> ModelSpec:
    return card(tiny_spec(2))


def export(model: SKNet, spec: ModelSpec) -> ir.Model:
    return trace(model, spec, TraceOptions(exporter="torchscript"))


def measure(model: SKNet, spec: ModelSpec, folder: Path, *keep: str) -> HeadroomReport:
    """As the line does it: the FP32 graph is run, with the tensors that are FP16 in the other one as outputs."""
    ir.save(export(model, spec), folder / "model.onnx")
    halving = HalfPrecision(keep)
    halving(export(model, spec))
    batches: Iterable[tuple[dict[str, Array], int]] = (({"input": batch}, count) for batch, count in BATCHES)
    return measure_headroom(folder / "model.onnx", halving.halved, batches, "noise")


def amplified(spec: ModelSpec, factor: float) -> SKNet:
    """The same function, but the map between reduce and the branches of one unit is ``factor`` times as large."""
    model = live(spec)
    unit = model.stages[0][0]
    unit.reduce.bn.weight *= factor
    unit.reduce.bn.bias *= factor
    for branch in unit.sk.branches:
        branch.conv.weight /= factor
    return model


def test_the_maxima_are_those_of_torch_over_all_images(tiny: ModelSpec, tmp_path: Path) -> None:
    expected: dict[str, float] = {}
    folded = fold(live(tiny)).double()

    def record(name: str) -> object:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            expected[name] = max(expected.get(name, 0.0), float(output.abs().max()))

        return hook

    for name, module in folded.named_modules():
        if isinstance(module, nn.Conv2d | nn.ReLU):
            # torch's ReLU is in place: read what the convolution gave before it is overwritten.
            module.register_forward_hook(record(f"{name}/{'Conv' if isinstance(module, nn.Conv2d) else 'Relu'}"))
    for batch, _ in BATCHES:
        folded(torch.from_numpy(batch).double())

    report = measure(live(tiny), tiny, tmp_path)
    found = {row.tensor: row for row in report.tensors}
    assert report.images == 5
    assert report.dataset == "noise"
    assert expected.keys() <= found.keys()
    for name, value in expected.items():
        assert found[name].max_abs == pytest.approx(value, rel=FLOAT32_ERROR)
        assert found[name].headroom == pytest.approx(65504 / value, rel=FLOAT32_ERROR)
    assert found["input"].max_abs == float(max(np.abs(batch).max() for batch, _ in BATCHES))
    logits = max(np.abs(torch_logits(live(tiny), batch)).max() for batch, _ in BATCHES)
    assert found["logits"].max_abs == pytest.approx(logits, rel=FLOAT32_ERROR)


def test_the_least_headroom_comes_first_and_a_sound_network_passes(tiny: ModelSpec, tmp_path: Path) -> None:
    report = measure(live(tiny), tiny, tmp_path)
    headrooms = [row.headroom for row in report.tensors]
    assert headrooms == sorted(headrooms)
    report.check()


def test_a_tensor_belongs_to_the_modules_that_make_and_use_it(tiny: ModelSpec, tmp_path: Path) -> None:
    rows = {row.tensor: row.modules for row in measure(live(tiny), tiny, tmp_path).tensors}
    assert rows["stages.0.0.reduce.relu/Relu"] == (
        "stages.0.0.reduce.relu",
        "stages.0.0.sk.branches.0.conv",
        "stages.0.0.sk.branches.1.conv",
    )
    assert rows["input"] == ("stem.conv",)


@pytest.mark.parametrize(
    ("reaches", "overflows"), [(40_000, False), pytest.param(66_000, True, marks=pytest.mark.slow), (120_000, True)]
)
def test_short_tensors_are_named_and_the_suggestion_makes_the_export_pass(
    tiny: ModelSpec, tmp_path: Path, reaches: float, overflows: bool
) -> None:
    usual = {row.tensor: row.max_abs for row in measure(live(tiny), tiny, tmp_path).tensors}
    model = amplified(tiny, reaches / usual["stages.0.0.reduce.relu/Relu"])
    with pytest.raises(PrecisionError) as failure:
        measure(model, tiny, tmp_path).check()
    message = failure.value.message
    assert "less than 2x headroom to 65504 on noise" in message
    assert ("(overflows)" in message) == overflows
    for tensor in ("stages.0.0.reduce.conv/Conv", "stages.0.0.reduce.relu/Relu"):
        assert f"{tensor}: reaches" in message
    assert "stem" not in message

    pattern = re.search("--keep-fp32 '(.*)';", failure.value.advice)
    assert pattern is not None
    measure(model, tiny, tmp_path, pattern[1]).check()
    # And the FP16 graph is sound then: its error is FP16's, about 2^-11 for each of some forty roundings.
    graph = RoundNarrow()(HalfPrecision([pattern[1]])(export(model, tiny)).model).model
    inputs = images(4)
    assert relative_error(run(graph, inputs)["logits"], torch_logits(model, inputs)) < 2e-2


def test_without_the_suggestion_the_overflow_is_real(tiny: ModelSpec) -> None:
    """What the check protects from: the same network without it gives garbage in FP16."""
    model = amplified(tiny, 10_000)  # reaches 120,000; ten times more, and the weights themselves would not fit
    graph = RoundNarrow()(HalfPrecision()(export(model, tiny)).model).model
    inputs = images(4)
    found = run(graph, inputs)["logits"]
    assert not np.isfinite(found).all() or relative_error(found, torch_logits(model, inputs)) > 0.1


def test_just_enough_headroom_passes(tiny: ModelSpec, tmp_path: Path) -> None:
    usual = {row.tensor: row.max_abs for row in measure(live(tiny), tiny, tmp_path).tensors}
    largest = max(usual["stages.0.0.reduce.conv/Conv"], usual["stages.0.0.reduce.relu/Relu"])
    report = measure(amplified(tiny, 32_000 / largest), tiny, tmp_path)
    assert report.tensors[0].headroom < 2.1
    report.check()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_in_float32_is_named(tiny: ModelSpec, tmp_path: Path, value: float) -> None:
    model = live(tiny)
    model.stages[1][0].expand.conv.weight[0, 0] = value
    with pytest.raises(
        PrecisionError, match=r"stages\.1\.0\.expand\.conv/Conv \(Conv\) is not finite on noise, already in FP32"
    ):
        measure(model, tiny, tmp_path, r"^stages\.1\.0\.expand")


def test_not_a_number_in_the_images_is_named(tiny: ModelSpec, tmp_path: Path) -> None:
    ir.save(export(live(tiny), tiny), tmp_path / "model.onnx")
    spoilt = images(2)
    spoilt[1, 0, 3, 3] = np.nan
    with pytest.raises(PrecisionError, match="the tensor input is not finite"):
        measure_headroom(tmp_path / "model.onnx", ["input", "logits"], [({"input": spoilt}, 2)], "noise")


def test_many_short_tensors_are_counted_and_all_are_in_the_suggestion() -> None:
    rows = [
        {"tensor": f"stages.{i}.relu/Relu", "modules": (f"stages.{i}.relu",), "max_abs": 1e5, "headroom": 0.655}
        for i in range(8)
    ]
    report = HeadroomReport.model_validate({"images": 1, "dataset": "noise", "tensors": rows})
    with pytest.raises(PrecisionError, match=r"(?s)8 FP16 tensor\(s\).*and 3 more") as failure:
        report.check()
    for i in range(8):
        assert rf"stages\.{i}\.relu" in failure.value.advice


# INT8 graphs


def int8_with_half(folder: Path, factor: float = 1.0) -> tuple[Path, list[str]]:
    """An INT8 graph with FP16 left, and what is FP16 in it. ``factor`` multiplies one unit's map before its gate weighs it."""
    model = int8(TWO)
    if factor != 1.0:
        scale = ir.Value(name="factor", const_value=ir.tensor(np.float32(factor), name="factor"))
        scale.shape, scale.type = ir.Shape([]), ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(scale)
        producer = next(node for node in model.graph if node.name == "stages.1.0.sk/Sub")
        fused = producer.outputs[0]
        planted = ir.node("Mul", [fused, scale], name="stages.1.0.sk/planted")
        planted.outputs[0].name = "stages.1.0.sk/planted"
        planted.outputs[0].shape, planted.outputs[0].type = fused.shape, ir.TensorType(ir.DataType.FLOAT)
        readers = list(fused.uses())
        model.graph.insert_after(producer, [planted])
        for use in readers:
            if use.node is not planted:
                use.node.replace_input_with(use.idx, planted.outputs[0])
    halving = HalfPrecision()
    halving(model)
    ir.save(model, folder / "int8.onnx")
    return folder / "int8.onnx", halving.halved


def int8_batches() -> list[tuple[dict[str, Array], int]]:
    return [({"input": normalised(spec_of(TWO), pixels(3, seed=seed))}, 3) for seed in (1, 2)]


def test_an_int8_graph_is_measured_itself(tmp_path: Path) -> None:
    """Its maxima are those of numpy, of FP16 tensors only; rounding to FP16 moves them by 2^-11, and integers by a level."""
    path, names = int8_with_half(tmp_path)
    report = measure_headroom(path, names, int8_batches(), "noise")
    report.check()
    values = [evaluate(onnx.load(path), feeds) for feeds, _ in int8_batches()]
    assert report.images == 6
    assert {row.tensor for row in report.tensors} == set(names)
    for row in report.tensors:
        name = "logits_fp16" if row.tensor == "logits" else row.tensor
        expected = max(float(np.abs(value[name].astype(np.float64)).max()) for value in values)
        assert row.max_abs == pytest.approx(expected, rel=0.05)
        assert {value[name].dtype for value in values} <= {np.dtype(np.float16), np.dtype(np.float32)}
    assert all(values[0][row.tensor].dtype != np.int8 for row in report.tensors)


def test_an_overflow_in_an_int8_graph_is_named_where_it_is(tmp_path: Path) -> None:
    """Saturated as INT8, or infinite, it would be hidden or spoil all that comes after it."""
    path, names = int8_with_half(tmp_path, 6e4)
    with pytest.raises(PrecisionError, match=r"stages\.1\.0\.sk/planted: reaches .*\(overflows\)") as failure:
        measure_headroom(path, names, int8_batches(), "noise").check()
    assert "stages.1.1" not in failure.value.message  # the INT8 tensor in between ends where its range ends
    assert r"stages\.1\.0\.sk" in failure.value.advice


def test_the_overflow_is_real(tmp_path: Path) -> None:
    path, _ = int8_with_half(tmp_path, 6e4)
    with open_session(path, also=["stages.1.0.sk/planted_round16"]) as session:
        found = session.run(int8_batches()[0][0])["stages.1.0.sk/planted_round16"]
    assert np.isinf(found).any()


@pytest.mark.parametrize("name", ["mask that is added", "mask that is chosen"])
def test_the_infinities_of_a_mask_are_those_of_fp16_and_nothing_else_is_overlooked(name: str, tmp_path: Path) -> None:
    """What is left of a masked tensor is measured: it must not leave FP16."""
    path = tmp_path / "masked.onnx"
    onnx.save(classifier(MIDDLES[name]), path)
    largest = {}
    for scale in (1.0, 1e6):
        feeds = {"input": schema_graphs.pixels() * np.float32(scale)}
        report = measure_headroom(path, ["b", "m", "s", "z"], [(feeds, 2)], "noise")
        largest[scale] = {row.tensor: row.max_abs for row in report.tensors}
    assert 0 < largest[1.0]["m"] <= largest[1.0]["b"]
    assert largest[1.0]["s"] == 1  # the first row sees one value only
    assert largest[1e6]["m"] > 65504
    spoilt = schema_graphs.pixels()
    spoilt[0, 0, 0, 0] = np.nan
    with pytest.raises(PrecisionError, match=r"the tensor m \((Add|Where)\) is not finite"):
        measure_headroom(path, ["m"], [({"input": spoilt}, 2)], "noise")


def test_a_session_that_gives_inner_tensors_takes_no_more_than_they_are() -> None:
    """ONNX Runtime's arena grows by doubling; the outputs of a session that gives many are most of its memory."""
    nodes = [helper.make_node("Relu", ["input"], ["inner"]), helper.make_node("Neg", ["inner"], ["logits"])]
    for also, arena in (((), True), (("inner",), False)):
        model = ir.from_proto(model_of(nodes, {"input": ["batch", 4]}, {"logits": ["batch", 4]}, {}))
        with open_model(model, also=also) as session:
            assert session._session.get_session_options().enable_cpu_mem_arena is arena

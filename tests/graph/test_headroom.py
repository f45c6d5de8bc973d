"""Headroom: the maxima are those of torch, what is short is named, and the way out that is named works."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from skdeploy.errors import PrecisionError
from skdeploy.graph.half import HalfPrecision
from skdeploy.graph.headroom import measure_headroom
from skdeploy.graph.rounding import RoundToHalf
from skdeploy.graph.trace import trace
from skdeploy.options import TraceOptions
from skdeploy.parity.report import HeadroomReport
from skdeploy.spec import ModelSpec
from skdeploy.zoo.fold import fold
from skdeploy.zoo.sknet import SKNet
from tests.conftest import TinySpec
from tests.graph.networks import FLOAT32_ERROR, Array, card, images, live, relative_error, run, torch_logits

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


@pytest.mark.parametrize(("reaches", "overflows"), [(40_000, False), (66_000, True), (120_000, True)])
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

    pattern = re.search("--keep-fp32 '(.*)'", failure.value.advice)
    assert pattern is not None
    measure(model, tiny, tmp_path, pattern[1]).check()
    # And the FP16 graph is sound then: its error is FP16's, about 2^-11 for each of some forty roundings.
    graph = RoundToHalf()(HalfPrecision([pattern[1]])(export(model, tiny)).model).model
    inputs = images(4)
    assert relative_error(run(graph, inputs)["logits"], torch_logits(model, inputs)) < 2e-2


def test_without_the_suggestion_the_overflow_is_real(tiny: ModelSpec) -> None:
    """What the check protects from: the same network without it gives garbage in FP16."""
    model = amplified(tiny, 10_000)  # reaches 120,000; ten times more, and the weights themselves would not fit
    graph = RoundToHalf()(HalfPrecision()(export(model, tiny)).model).model
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
        PrecisionError, match=r"stages\.1\.0\.expand\.conv/Conv is not finite on noise, in FP32 already"
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

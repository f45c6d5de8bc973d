"""The search for units to keep out of INT8, on a chain of convolutions in which chosen ones are spoiled."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import ceil, log2
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from skdeploy.backends import metrics
from skdeploy.core.errors import AccuracyError, UsageError
from skdeploy.core.progress import Silent
from skdeploy.core.spec import ModelSpec
from skdeploy.ir.placement import place
from skdeploy.quant.macs import macs_of
from skdeploy.quant.mixed import GIVE_BACK, MixedPrecision, search
from skdeploy.quant.quantize import quantize
from skdeploy.quant.ranges import Ranges
from skdeploy.quant.sensitivity import measure_sensitivity
from skdeploy.quant.truth import ClassLabels, Drop
from tests.conftest import TinySpec
from tests.graphs.networks import (
    card,
    run,
    sqnr_db,
)
from tests.quant.noise import calibrated, dataset, normalised, pixels

BLOCKS = 12
UNITS = BLOCKS + 1  # and the classifier
IMAGES = pixels(80, seed=5)


@pytest.fixture
def spec(tiny_spec: TinySpec) -> ModelSpec:
    return card(tiny_spec())  # its image, preprocessing and number of classes; the graph is the chain


@pytest.fixture
def model() -> ir.Model:
    return chain()


def chain(seed: int = 1) -> ir.Model:
    """Convolutions of their own width each, so of different cost: every one is a unit, and noise of an early one goes far."""
    rng = np.random.default_rng(seed)
    widths = [3, *(8 if index % 3 else 16 for index in range(BLOCKS))]
    nodes, weights = [], []
    value = "input"
    for index, (into, out) in enumerate(pairwise(widths)):
        weight = rng.normal(0, np.sqrt(2 / (9 * into)), (out, into, 3, 3)).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(weight, f"block{index}.weight"))
        conv, relu = f"block{index}/Conv", f"block{index}/Relu"
        stride = 2 if index == 0 else 1
        nodes.append(
            onnx.helper.make_node(
                "Conv", [value, f"block{index}.weight"], [conv], conv, pads=[1, 1, 1, 1], strides=[stride, stride]
            )
        )
        nodes.append(onnx.helper.make_node("Relu", [conv], [relu], relu))
        value = relu
    weights.append(onnx.numpy_helper.from_array(np.array([2, 3]), "space"))
    weights.append(
        onnx.numpy_helper.from_array(rng.normal(0, 1, (5, widths[-1])).astype(np.float32), "classifier.weight")
    )
    nodes.append(onnx.helper.make_node("ReduceMean", [value, "space"], ["/ReduceMean"], "/ReduceMean", keepdims=0))
    nodes.append(
        onnx.helper.make_node("Gemm", ["/ReduceMean", "classifier.weight"], ["centred"], "classifier/Gemm", transB=1)
    )
    # Means of noise are alike: without their common part, all five classes are seen.
    weights.append(onnx.numpy_helper.from_array(np.zeros(5, np.float32), "common"))
    nodes.append(onnx.helper.make_node("Sub", ["centred", "common"], ["logits"], "/Sub"))
    value_info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "chain",
        [value_info("input", onnx.TensorProto.FLOAT, ["batch", 3, 20, 24])],
        [value_info("logits", onnx.TensorProto.FLOAT, ["batch", 5])],
        weights,
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=10)
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    common = run(proto, normalised(pixels(64, seed=9)))["logits"].mean(axis=0)
    next(w for w in proto.graph.initializer if w.name == "common").CopyFrom(
        onnx.numpy_helper.from_array(common.astype(np.float32), "common")
    )
    return ir.from_proto(proto)


def true_labels(model: ir.Model) -> NDArray[np.int64]:
    """FP32 is always right."""
    labels: NDArray[np.int64] = run(model, normalised(IMAGES))["logits"].argmax(axis=1)
    return labels


def spoiled(ranges: Ranges, **factors: float) -> Ranges:
    """Ranges in which what these units read has a threshold so many times as wide."""
    content = ranges.model_dump(by_alias=True)
    for unit, factor in factors.items():
        before = f"block{int(unit.removeprefix('block')) - 1}/Relu"
        for key in ("threshold", "shifted_threshold"):
            if content["tensors"][before][key] is not None:
                content["tensors"][before][key] *= factor
    return Ranges.model_validate(content)


def healthy(model: ir.Model, spec: ModelSpec) -> Ranges:
    return calibrated(model, spec, dataset(16), equalize=False)


def names(mixed: MixedPrecision) -> set[str]:
    return {unit.unit for unit in mixed.kept}


class Counted(list[NDArray[np.uint8]]):
    """Images that count how often they are gone through."""

    runs = 0

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        self.runs += 1
        return super().__iter__()


def test_the_chain_sees_several_classes(model: ir.Model) -> None:
    """Otherwise nothing below could lose accuracy."""
    assert np.count_nonzero(np.bincount(true_labels(model)) >= 5) >= 3


@pytest.mark.parametrize("unit", ["block1", pytest.param("block6", marks=pytest.mark.slow), "block11"])
def test_the_one_unit_that_int8_destroys_is_the_only_one_kept(model: ir.Model, spec: ModelSpec, unit: str) -> None:
    labels = true_labels(model)
    ranges = spoiled(healthy(model, spec), **{unit: 300.0})
    mixed = search(model, spec, ranges, IMAGES, ClassLabels(labels), 15.0)
    assert names(mixed) == {unit}
    (kept,) = mixed.kept
    assert mixed.keep == (rf"^{unit}(\.|$)",)
    assert kept.drop_before is not None
    assert kept.drop_before > 15 >= mixed.drop.points
    assert kept.noise_share > 0.9
    assert "of all units' noise" in kept.reason

    # That the patterns do it is told by ONNX Runtime alone.
    graph = quantize(model, spec, ranges, mixed.keep)
    # In batches of another size sums have another order: an image on the edge between two classes may go the other way.
    assert 100 * np.mean(exact(graph.model).argmax(axis=1) != labels) == pytest.approx(
        mixed.drop.points, abs=101 / len(IMAGES)
    )
    macs = macs_of(model)
    share = sum(macs[name] for name in graph.placement.weighted) / sum(macs.values())
    assert mixed.int8_mac_share == pytest.approx(share, rel=1e-12)


def test_what_a_unit_saves_is_told_by_the_mix_without_it(model: ir.Model, spec: ModelSpec) -> None:
    ranges = spoiled(healthy(model, spec), block2=300.0, block7=100.0)
    mixed = search(model, spec, ranges, IMAGES, ClassLabels(true_labels(model)), 15.0)
    assert names(mixed) == {"block2", "block7"}
    expected = run(model, normalised(IMAGES))["logits"]

    def without(unit: str) -> float:
        keep = tuple(kept.pattern for kept in mixed.kept if kept.unit != unit)
        return sqnr_db(exact(quantize(model, spec, ranges, keep).model), expected)

    # In batches of another size sums have another order, and a few values go to another step: see test_sensitivity.py.
    assert mixed.sqnr_db == pytest.approx(without("none"), abs=0.05)
    assert mixed.ranking_images == len(IMAGES)
    for kept in mixed.kept:
        assert kept.sqnr_before == pytest.approx(without(kept.unit), abs=0.05)
        assert kept.sqnr_before < mixed.sqnr_db - 3
        others = names(mixed) - {kept.unit}
        ran = [p.drop.points for p in mixed.probes if kept.unit not in p.kept and others <= set(p.kept)]
        assert kept.drop_before == max(ran)  # bisection or giving back has tried each of these two
        assert kept.drop_before > 15


def test_all_units_that_int8_destroys_are_kept_and_no_other(model: ir.Model, spec: ModelSpec) -> None:
    ranges = spoiled(healthy(model, spec), block2=300.0, block7=300.0, block9=300.0)
    mixed = search(model, spec, ranges, IMAGES, ClassLabels(true_labels(model)), 15.0)
    assert names(mixed) == {"block2", "block7", "block9"}


def test_int8_within_the_budget_is_taken_as_it_is(model: ir.Model, spec: ModelSpec) -> None:
    images = Counted(IMAGES)
    mixed = search(model, spec, healthy(model, spec), images, ClassLabels(true_labels(model)), 20.0)
    assert (mixed.kept, mixed.keep, mixed.evaluations) == ((), (), 1)
    assert images.runs == 2  # FP32 and INT8
    assert mixed.fp32_top1 == 1
    assert mixed.top1 == pytest.approx(1 - mixed.drop.points / 100)


def test_far_fewer_runs_over_all_images_than_units(model: ir.Model, spec: ModelSpec) -> None:
    ranges = spoiled(healthy(model, spec), block3=300.0, block8=300.0)
    images = Counted(IMAGES)
    mixed = search(model, spec, ranges, images, ClassLabels(true_labels(model)), 15.0, ranking_images=16)
    assert mixed.units == UNITS
    assert images.runs == 1 + mixed.evaluations
    assert mixed.evaluations == len(mixed.probes) <= 1 + ceil(log2(UNITS)) + GIVE_BACK < UNITS
    assert mixed.ranking_images == 16
    assert len({frozenset(probe.kept) for probe in mixed.probes}) == len(mixed.probes)


def test_bisection_ends_where_trying_one_after_the_other_would(model: ir.Model, spec: ModelSpec) -> None:
    """And giving back leaves no less in INT8 than that."""
    labels = true_labels(model)
    ranges = spoiled(healthy(model, spec), block2=20.0, block5=30.0, block8=60.0, block10=40.0)
    report = measure_sensitivity(model, spec, ranges, IMAGES)
    ranked = sorted(report.units, key=lambda row: 10 ** (-row.only_on.sqnr_db / 10) / row.macs, reverse=True)
    expected = None
    for count in range(UNITS):
        patterns = tuple(row.pattern for row in ranked[:count])
        drop = 100 * np.mean(exact(quantize(model, spec, ranges, patterns).model).argmax(axis=1) != labels)
        if drop <= 10:
            expected = [row.unit for row in ranked[:count]]
            break
    assert expected is not None
    assert 1 < len(expected) < UNITS - 1
    mixed = search(model, spec, ranges, IMAGES, ClassLabels(labels), 10.0, ranking_images=len(IMAGES))
    bisected = [probe for probe in mixed.probes if probe.step == "bisection" and probe.drop.fits(10)]
    assert list(min(bisected, key=lambda probe: len(probe.kept)).kept) == expected
    assert names(mixed) <= set(expected)
    assert mixed.int8_mac_share >= max(probe.int8_mac_share for probe in bisected)
    assert mixed.drop.points <= 10


def exact(model: ir.Model) -> NDArray[np.float32]:
    """Logits from ONNX Runtime without INT8 kernels, as the search runs it."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(["logits"], {"input": normalised(IMAGES)})[0]
    return logits


def test_a_harmless_unit_that_ranks_high_is_given_back(model: ir.Model, spec: ModelSpec) -> None:
    """The classifier does 0.01 % of the work, so per multiply-accumulate its noise weighs more than that of a spoiled unit."""
    ranges = spoiled(healthy(model, spec), block11=30.0)
    mixed = search(model, spec, ranges, IMAGES, ClassLabels(true_labels(model)), 10.0)
    assert any(probe.step == "bisection" and {"classifier", "block11"} <= set(probe.kept) for probe in mixed.probes)
    assert any(probe.step == "give back" for probe in mixed.probes)
    assert names(mixed) == {"block11"}


def test_what_is_kept_already_stays_and_is_no_unit(model: ir.Model, spec: ModelSpec) -> None:
    ranges = spoiled(healthy(model, spec), block4=300.0, block7=300.0)
    mixed = search(model, spec, ranges, IMAGES, ClassLabels(true_labels(model)), 15.0, keep=("^block4$",))
    assert mixed.units == UNITS - 1
    assert names(mixed) == {"block7"}
    assert mixed.keep == ("^block4$", r"^block7(\.|$)")
    assert "block4/Conv" in place(model, mixed.keep).kept
    macs = macs_of(model)
    kept = macs["block4/Conv"] + macs["block7/Conv"]
    assert mixed.int8_mac_share == pytest.approx(1 - kept / sum(macs.values()), rel=1e-12)


def test_a_budget_that_no_mix_meets_says_the_best_there_is(model: ir.Model, spec: ModelSpec) -> None:
    content = healthy(model, spec).model_dump(by_alias=True)
    for tensor in content["tensors"].values():  # all that is read but the pixels, which block 0 has exactly
        for key in ("threshold", "shifted_threshold"):
            if tensor[key] is not None:
                tensor[key] *= 300
    labels = true_labels(model)
    images = Counted(IMAGES)
    with pytest.raises(AccuracyError) as failure:
        search(model, spec, Ranges.model_validate(content), images, ClassLabels(labels), 0.5, dataset="eval.npz")
    assert failure.value.exit_code == 10
    message = failure.value.message
    assert "within 0.5 points on 80 images of eval.npz" in message
    assert "the best loses" in message
    assert "of 13 units kept" in message
    assert "and 7 more" in message
    assert "--max-drop" in failure.value.advice
    assert "--fp16" in failure.value.advice
    assert images.runs < UNITS


def test_the_only_unit_cannot_be_kept(model: ir.Model, spec: ModelSpec) -> None:
    ranges = spoiled(healthy(model, spec), block5=300.0)
    others = (*(f"^block{index}$" for index in range(BLOCKS) if index != 5), "^classifier$")
    with pytest.raises(AccuracyError, match="with 0 of 1 units kept"):
        search(model, spec, ranges, IMAGES, ClassLabels(true_labels(model)), 1.0, keep=others)


def test_no_labels_say_what_to_give(model: ir.Model, spec: ModelSpec) -> None:
    with pytest.raises(UsageError, match=r"photos has none") as refusal:
        search(model, spec, healthy(model, spec), IMAGES, None, 1.0, dataset="photos")
    for form in ("class folders", "path,label", ".npz with `labels`"):
        assert form in refusal.value.advice


@pytest.mark.parametrize("budget", [-0.1, 101.0, float("nan")])
def test_a_budget_that_makes_no_sense_is_refused(model: ir.Model, spec: ModelSpec, budget: float) -> None:
    with pytest.raises(UsageError, match="from 0 to 100"):
        search(model, spec, healthy(model, spec), IMAGES, ClassLabels(true_labels(model)), budget)


def test_labels_out_of_range_are_refused(model: ir.Model, spec: ModelSpec) -> None:
    labels = true_labels(model)
    labels[3] = 5
    with pytest.raises(UsageError, match="image 3 has label 5"):
        search(model, spec, healthy(model, spec), IMAGES, ClassLabels(labels), 1.0)


def test_nothing_is_searched_on_labels_that_fp32_only_guesses(model: ir.Model, spec: ModelSpec) -> None:
    """Where FP32 is always wrong nothing can be lost, and any INT8 would meet any budget: the gate says so at the end."""
    said: list[str] = []

    class Heard(Silent):
        def note(self, text: str) -> None:
            said.append(text)

    labels = (true_labels(model) + 1) % 5
    mixed = search(
        model, spec, spoiled(healthy(model, spec), block6=300.0), IMAGES, ClassLabels(labels), 0.0, progress=Heard()
    )
    assert (mixed.keep, mixed.evaluations) == ((), 1)
    assert ["FP32 is right on 0 of 80 images, no better than naming" in text for text in said] == [True]


def test_the_result_survives_json(model: ir.Model, spec: ModelSpec) -> None:
    ranges = spoiled(healthy(model, spec), block6=300.0)
    mixed = search(model, spec, ranges, IMAGES, ClassLabels(true_labels(model)), 15.0)
    assert MixedPrecision.model_validate_json(mixed.model_dump_json()) == mixed


@pytest.mark.parametrize(("images", "lost", "gained"), [(100, 3, 1), (1000, 40, 38), (10_000, 7, 90), (50, 0, 0)])
def test_the_standard_error_is_that_of_paired_images(images: int, lost: int, gained: int) -> None:
    each = np.array([1] * lost + [-1] * gained + [0] * (images - lost - gained))
    drop = Drop(images=images, lost=lost, gained=gained)
    assert drop.points == pytest.approx(100 * each.mean(), rel=1e-12)
    assert drop.standard_error == pytest.approx(100 * each.std() / np.sqrt(images), rel=1e-9)


def test_the_standard_error_is_what_repeated_samples_show() -> None:
    """5 % of images are lost and 3 % gained: the drops of many samples of 400 scatter by the error that one of them tells."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(400, [0.05, 0.03, 0.92], size=4000)
    drops = [Drop(images=400, lost=int(lost), gained=int(gained)) for lost, gained, _ in counts]
    scatter = np.std([drop.points for drop in drops])
    # The standard deviation of 4000 samples is itself known to 1 / sqrt(2 * 4000) = 1.1 %; three times that.
    assert np.mean([drop.standard_error for drop in drops]) == pytest.approx(scatter, rel=0.034)


def test_a_budget_is_met_exactly_too() -> None:
    assert Drop(images=1000, lost=2, gained=0).fits(0.2)
    assert Drop(images=3000, lost=7, gained=1).fits(0.2)
    assert not Drop(images=1000, lost=3, gained=0).fits(0.2)
    assert Drop(images=10, lost=1, gained=1).fits(0)
    assert not Drop(images=10_000, lost=2, gained=1).fits(0)


def result(max_drop: float, **drop: int) -> MixedPrecision:
    content: dict[str, Any] = {
        "model": "tiny", "dataset": "noise", "images": drop["images"], "max_drop": max_drop, "fp32_top1": 0.9, "top1": 0.9,
        "drop": Drop(**drop), "sqnr_db": 30.0,
        "int8_mac_share": 1.0, "keep": (), "kept": (), "units": 5, "ranking_images": 100, "evaluations": 1,
        "probes": (),
    }  # fmt: skip
    return MixedPrecision(**content)


def test_too_few_images_to_tell_are_named() -> None:
    (note,) = result(0.2, images=100, lost=0, gained=0).notes
    assert "the drop is 0.00 +- 3.00 points (95 %): 100 images are too few to prove" in note  # the rule of three
    assert "about 23,000 would" in note  # 100 * (3.0 / 0.2)^2 = 22,500
    (note,) = result(0.2, images=1000, lost=4, gained=3).notes
    assert "the drop is 0.10 +- 0.52 points" in note  # 1.96 * sqrt(7) / 10
    assert result(0.2, images=50_000, lost=40, gained=30).notes == ()
    (note,) = result(0.0, images=1000, lost=4, gained=4).notes
    assert "would" not in note  # no number of images proves equality


def test_decibels_of_a_noise() -> None:
    assert metrics.sqnr_db(1.0, 0.01) == pytest.approx(20)
    assert metrics.sqnr_db(1.0, 0.0) == 300

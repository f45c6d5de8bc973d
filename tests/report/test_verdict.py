"""What a report claims of a bundle: no more than was shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from skdeploy.accuracy.verdict import decide_verdict
from skdeploy.bundle.folder import Bundle
from skdeploy.core.errors import IntegrityError
from skdeploy.core.spec import Precision
from skdeploy.report.accuracy import accuracy_findings
from skdeploy.report.blocks import Text
from skdeploy.report.findings import read_findings
from skdeploy.report.page import render_report
from tests.report.pages import page
from tests.report.reported import (
    add,
    bench,
    blame,
    comparison,
    evaluation,
    full_bundle,
    make_bundle,
    parity,
    receipt,
    write,
)

UNPROVEN = comparison("model.plan", "unproven", "tensorrt", reason="no GPU here")


def state(bundle: Bundle) -> str:
    return decide_verdict(read_findings(bundle)).state


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with every finding. Not to be changed."""
    return full_bundle(tmp_path_factory.mktemp("full") / "b")


def test_verified_is_said_of_a_bundle_whose_every_graph_passed(full: Bundle) -> None:
    text = page(full).sections["verdict"]
    assert text.split()[0] == "verified"
    assert "model.onnx, model.int8.onnx on onnxruntime" in text


def test_an_engine_that_was_not_run_is_named_and_the_bundle_is_verified_here_only(tmp_path: Path) -> None:
    report = parity(comparison("model.onnx"), comparison("model.int8.onnx"), UNPROVEN)
    bundle = make_bundle(tmp_path / "b", report=report, engine=True)
    text = " ".join(page(bundle).sections["verdict"].split())
    assert text.startswith("verified here; the engine has not run yet ")
    assert "Not run yet model.plan on tensorrt: no GPU here" in text
    assert "verified on" not in line_of(bundle, "model.plan")


def line_of(bundle: Bundle, path: str) -> str:
    """The text of one station, up to the next."""
    text = page(bundle).sections["line"]
    return re.split(r"model\.\w*\.?onnx|\w+\.json", text[text.index(path) :])[0]


def test_a_graph_without_a_comparison_is_not_called_verified(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", report=parity(comparison("model.onnx")))
    assert state(bundle) == "not verified"
    assert "Not compared model.int8.onnx" in " ".join(page(bundle).sections["verdict"].split())


@pytest.mark.parametrize("recorded", ["verified", "failed"])
def test_a_failed_comparison_is_a_failure_whatever_the_manifest_says(tmp_path: Path, recorded: str) -> None:
    report = parity(
        comparison("model.onnx"), comparison("model.int8.onnx", "fail", problems=("cosine 0.5, at least 0.95",))
    )
    bundle = make_bundle(tmp_path / "b", report=report, verdict=recorded)
    text = page(bundle).sections["verdict"]
    assert text.split()[0] == "failed:"
    assert "cosine 0.5, at least 0.95" in text


def test_a_failed_export_is_a_failure_whatever_its_parity_says(tmp_path: Path) -> None:
    assert state(make_bundle(tmp_path / "b", verdict="failed")) == "failed"


def test_an_incomplete_bundle_gets_a_report_that_says_so(tmp_path: Path) -> None:
    text = page(make_bundle(tmp_path / "b", verdict="incomplete")).sections["verdict"]
    assert "not finished: run the same export again" in text
    assert "verified" not in text.lower()


def test_a_manifest_alone_does_not_make_a_bundle_verified(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    kept = tuple(a for a in bundle.manifest.artifacts if a.path != "parity.json")
    bundle.save(bundle.manifest.model_copy(update={"artifacts": kept}))
    assert state(bundle) == "not verified"
    assert "skdeploy verify" in page(bundle).sections["absent"]


def test_a_parity_report_of_other_graphs_proves_nothing(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    verdict = bundle.manifest.verdict
    write(bundle, "model.onnx", "other weights", {}, Precision.FP32)
    assert bundle.manifest.verdict == verdict == "verified"
    found = read_findings(bundle)
    assert found.parity is None
    assert "parity.json" in found.outdated
    assert decide_verdict(found).state == "not verified"
    assert "Outdated" in page(bundle).sections["parity"]


@pytest.mark.parametrize(
    ("decision", "expected"), [("pass", "verified"), ("fail", "failed"), ("inconclusive", "accuracy undecided")]
)
def test_the_accuracy_gate_counts(tmp_path: Path, decision: Any, expected: str) -> None:
    bundle = make_bundle(tmp_path / "b")
    add(bundle, accuracy=evaluation(bundle.manifest.model, decision))
    assert state(bundle) == expected
    assert evaluation(bundle.manifest.model, decision).pairs[0].sentence in page(bundle).sections["verdict"]


def test_a_stage_to_blame_is_a_failure(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    add(bundle, blame=blame("model.int8.onnx"))
    assert state(bundle) == "failed"


@pytest.fixture
def engine(tmp_path: Path) -> Bundle:
    """A bundle with an engine that could not run."""
    report = parity(comparison("model.onnx"), comparison("model.int8.onnx"), UNPROVEN)
    return make_bundle(tmp_path / "engine", report=report, engine=True)


def test_a_receipt_stands_for_a_run_on_a_device(engine: Bundle) -> None:
    receipt(engine, "pass")
    text = " ".join(page(engine).sections["verdict"].split())
    assert text.startswith("verified ")
    assert "has not run yet" not in text
    assert "In parity by receipt model.plan on GPU <b>9000</b> (receipt of 2026-02-03)" in text


def test_a_receipt_of_a_failure_is_a_failure(engine: Bundle) -> None:
    receipt(engine, "fail")
    assert state(engine) == "failed"


def test_a_receipt_of_latency_proves_no_parity_and_its_figures_are_shown(engine: Bundle) -> None:
    receipt(engine, "recorded", "latency", median_ms=1.2345)
    assert state(engine) == "verified here"
    text = page(engine).sections["latency"]
    assert "median ms" in text
    assert "1.234" in text
    assert "No receipt, no claim" not in text


def test_a_bench_has_a_tile_and_its_doubts_come_before_its_figures_and_whether_int8_pays(engine: Bundle) -> None:
    receipt(engine, "recorded", "latency", **bench(1.84, others=0.4))
    found = page(engine)
    assert (
        "Latency3.68 msp50, batch 1, model.plan, tensorrt on GPU <b>9000</b>; the machine was not at rest" in found.text
    )
    text = " ".join(found.sections["latency"].split())
    order = ["not at rest", "other processes used 40%", "INT8 pays against FP16", "1.84x", "3.680", "1 receipt"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_a_bench_without_comparison_or_doubt_has_neither(engine: Bundle) -> None:
    content = bench(1.84)
    content.pop("comparisons")  # as an earlier skdeploy wrote it
    receipt(engine, "recorded", "latency", **content)
    text = page(engine).sections["latency"]
    assert "3.680" in text
    assert "INT8 pays" not in text
    assert "not at rest" not in text


def test_without_a_receipt_no_latency_is_claimed(full: Bundle) -> None:
    assert "No receipt, no claim" in page(full).sections["absent"]


def test_a_receipt_of_another_engine_is_refused(engine: Bundle) -> None:
    path = receipt(engine, "pass")
    path.write_text(path.read_text().replace("CUDA 13.0", "CUDA 13.1"))
    with pytest.raises(IntegrityError, match=path.name):
        render_report(engine)


def test_a_warning_stands_above_what_it_concerns(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    found = evaluation(bundle.manifest.model).model_copy(update={"missing_classes": ("cat",)})
    add(bundle, accuracy=found)
    text = page(bundle).sections["accuracy"]
    assert 0 < text.index("cat") < text.index("94.00 %")


@pytest.mark.parametrize(("right", "warned"), [(0, True), (10, True), (11, False)])
def test_an_accuracy_of_guessing_is_pointed_out(tmp_path: Path, right: int, warned: bool) -> None:
    """On 20 images of 2 classes, 10 are right by chance."""
    found = evaluation(make_bundle(tmp_path / "b").manifest.model)
    first = found.accuracies[0]
    top1 = first.top1.model_copy(update={"correct": right, "images": 20})
    classes = tuple(
        one.model_copy(update={"top1": one.top1.model_copy(update={"images": 10})}) for one in first.per_class[:2]
    )
    first = first.model_copy(update={"top1": top1, "per_class": classes})
    found = found.model_copy(update={"classes": ("a", "b"), "accuracies": (first, *found.accuracies[1:])})
    texts = [block.text for block in accuracy_findings(found).blocks if isinstance(block, Text)]
    said = f"right on {right} of 20 images, no better than naming the most frequent class each time (10)"
    assert any(said in text for text in texts) == warned

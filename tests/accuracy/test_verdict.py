"""The verdict: each state can occur, each of its figures is right, and every output has the same text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from skdeploy.accuracy.gate import Evaluation
from skdeploy.accuracy.statistics import Pairs, decide, drop_interval, images_to_decide, passing_budget
from skdeploy.accuracy.verdict import State, Verdict, decide_verdict
from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.cli.console import bundle_json, print_bundle, write_json
from skdeploy.cli.evaluate import finish
from skdeploy.cli.verify import write_files
from skdeploy.core.architecture import ModuleSpec
from skdeploy.core.errors import AccuracyError, ParityError
from skdeploy.core.precision import Precision
from skdeploy.core.spec import Assumption
from skdeploy.inspect.inspection import inspect_bundle
from skdeploy.line.verification import Verification
from skdeploy.parity.report import ParityReport
from skdeploy.report.markdown import markdown
from tests.report.pages import page
from tests.report.reported import add, blame, comparison, evaluation, make_bundle, parity

UNDECIDED = Pairs(both_right=930, only_first=12, only_second=8, both_wrong=50)


def undecided(bundle: Bundle, pairs: Pairs = UNDECIDED, max_drop: float = 0.5) -> Evaluation:
    """An evaluation whose 1,000 images cannot tell a drop of 0.4 points from one beyond 0.5."""
    found = evaluation(bundle.manifest.model, "inconclusive")
    low, high = drop_interval(pairs, 0.95)
    assert decide((low, high), max_drop / 100) == "inconclusive"
    update = {
        "pairs": pairs,
        "drop": 100 * pairs.drop,
        "max_drop": max_drop,
        "drop_low": 100 * low,
        "drop_high": 100 * high,
    }
    return found.model_copy(update={"pairs": (found.pairs[0].model_copy(update=update),)})


def verified(folder: Path) -> Bundle:
    return make_bundle(folder)


def here(folder: Path) -> Bundle:
    engine = comparison("model.plan", "unproven", "tensorrt", reason="no GPU here")
    report = parity(comparison("model.onnx"), comparison("model.int8.onnx"), engine)
    return make_bundle(folder, report=report, engine=True)


def accuracy_undecided(folder: Path) -> Bundle:
    bundle = make_bundle(folder)
    add(bundle, accuracy=undecided(bundle))
    return bundle


def failed(folder: Path) -> Bundle:
    problems = ("SQNR 8.7 dB in image 3.png, at least 10 dB",)
    report = parity(comparison("model.onnx"), comparison("model.int8.onnx", "fail", problems=problems))
    return make_bundle(folder, report=report, verdict="failed")


def unproven(folder: Path) -> Bundle:
    return make_bundle(folder, report=parity(comparison("model.onnx")))


def incomplete(folder: Path) -> Bundle:
    return make_bundle(folder, verdict="incomplete")


MADE: dict[State, tuple[Callable[[Path], Bundle], str]] = {
    State.VERIFIED: (verified, "verified"),
    State.HERE: (here, "verified here; the engine has not run yet"),
    State.UNDECIDED: (
        accuracy_undecided,
        "accuracy undecided: {more:,} images more, or a budget of {budget:g} would pass",
    ),
    State.FAILED: (failed, "failed: model.int8.onnx on onnxruntime: SQNR 8.7 dB in image 3.png, at least 10 dB"),
    State.UNPROVEN: (unproven, "not verified: model.int8.onnx was not compared"),
    State.INCOMPLETE: (incomplete, "not finished: run the same export again"),
}


def verdict(bundle: Bundle) -> Verdict:
    return decide_verdict(inspect_bundle(bundle.folder))


@pytest.mark.parametrize("state", State)
def test_every_state_has_one_text_and_every_output_has_it(
    state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    make, words = MADE[state]
    bundle = make(tmp_path / "b")
    more = (images_to_decide(UNDECIDED, 0.005, 0.95) or 0) - UNDECIDED.images
    text = words.format(more=more, budget=passing_budget(UNDECIDED, 0.95))
    facts = inspect_bundle(bundle.folder)
    found = decide_verdict(facts)
    assert (found.state, found.text) == (state, text)
    assert bool(found.next) == (state is not State.VERIFIED)

    print_bundle(bundle, facts.parity, found)
    assert capsys.readouterr().out.splitlines()[0] == text
    write_json(bundle_json(bundle, facts.parity, found))
    assert json.loads(capsys.readouterr().out)["verdict"] | {"points": []} == {
        "state": state.value, "text": text, "points": [], "next": list(found.next),
    }  # fmt: skip
    assert " ".join(page(bundle).sections["verdict"].split()).startswith(text)

    report = facts.parity
    if report is not None:  # what `verify` has measured
        verification = Verification(load_bundle(bundle.folder), report, (), (), 1.0)
        assert verification.verdict.text == text
        write_files(verification, tmp_path / "v.xml", tmp_path / "v.md")
        assert verdict_in(tmp_path / "v.xml") == text
        assert (tmp_path / "v.md").read_text().splitlines()[0].endswith(markdown(text))
        measured = facts.accuracy or evaluation(bundle.manifest.model, None)
        show(measured, found, tmp_path)
        assert capsys.readouterr().out.splitlines()[0] == text
        assert verdict_in(tmp_path / "e.xml") == text
        assert (tmp_path / "e.md").read_text().splitlines()[0] == f"## {markdown(text)}"


def show(measured: Evaluation, found: Verdict, folder: Path) -> None:
    """As ``skdeploy evaluate`` ends."""
    files: Any = {"junit": folder / "e.xml", "markdown": folder / "e.md"}
    finish(measured, found, as_json=False, allow_inconclusive=True, **files)


def verdict_in(junit: Path) -> str | None:
    found = ET.parse(junit).getroot().find("testsuite/properties/property[@name='verdict']")
    return None if found is None else found.get("value")


def test_the_undecided_figures_are_those_that_decide(tmp_path: Path) -> None:
    """With the named budget the gate passes, with a hundredth of a point less it does not."""
    budget = passing_budget(UNDECIDED, 0.95)
    interval = drop_interval(UNDECIDED, 0.95)
    assert decide(interval, budget / 100) == "pass"
    assert decide(interval, (budget - 0.01) / 100) != "pass"
    needed = images_to_decide(UNDECIDED, 0.005, 0.95)
    assert needed is not None
    share = needed / UNDECIDED.images
    many = Pairs(**{name: round(share * count) for name, count in UNDECIDED.model_dump().items()})
    assert decide(drop_interval(many, 0.95), 0.005) == "pass"


@pytest.mark.parametrize("lost", [0, 1, 7, 40])
@pytest.mark.parametrize("images", [1, 100, 5000])
def test_a_passing_budget_is_the_smallest_of_its_hundredths(lost: int, images: int) -> None:
    pairs = Pairs(both_right=max(0, images - lost), only_first=min(lost, images), only_second=0, both_wrong=0)
    budget = passing_budget(pairs, 0.95)
    interval = drop_interval(pairs, 0.95)
    assert decide(interval, budget / 100) == "pass"
    assert budget == 0 or decide(interval, round(100 * budget - 1) / 10_000) != "pass"


def test_a_drop_that_is_the_budget_names_no_number_of_images(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    pairs = Pairs(both_right=930, only_first=12, only_second=7, both_wrong=51)
    add(bundle, accuracy=undecided(bundle, pairs))
    assert verdict(bundle).text == f"accuracy undecided: a budget of {passing_budget(pairs, 0.95):g} would pass"
    assert "more --data" not in verdict(bundle).next[0]


def test_a_measured_drop_above_the_budget_is_told_to_expect_a_failure(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    add(bundle, accuracy=undecided(bundle, Pairs(both_right=930, only_first=14, only_second=7, both_wrong=49)))
    found = verdict(bundle)
    assert found.state is State.UNDECIDED
    assert "above the budget, so expect a failure" in found.next[0]


def test_a_verdict_says_what_was_assumed_of_the_network(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    texts = ("stride 2 stem", "3x3 max pool", "eps 1e-5", "mean and std of ImageNet")
    assumed = tuple(Assumption(about="architecture", text=text, source="the layout timm") for text in texts)
    bundle.save(bundle.manifest.model_copy(update={"assumptions": assumed[:2]}))
    assert verdict(bundle).text == "verified, assuming stride 2 stem and 3x3 max pool"
    bundle.save(bundle.manifest.model_copy(update={"assumptions": assumed}))
    found = verdict(bundle)
    assert found.text == "verified, assuming stride 2 stem, 3x3 max pool, eps 1e-5 and 1 more"
    assert [p.text for p in found.points if p.label == "Assumed"] == [
        f"{text} (from the layout timm)" for text in texts
    ]


def test_a_verdict_says_that_the_network_is_untrained_and_what_it_was_compared_with(tmp_path: Path) -> None:
    report = parity().model_copy(update={"reference": "golden.npz"})
    bundle = make_bundle(tmp_path / "b", report=report)
    assert verdict(bundle).text == "verified against golden.npz"
    weights = bundle.manifest.weights.model_copy(update={"source": "random", "seed": 0})
    bundle.save(bundle.manifest.model_copy(update={"weights": weights}))
    assert verdict(bundle).text == "verified against golden.npz, untrained: the weights are random"
    own = bundle.manifest.model.model_copy(update={"network": ModuleSpec(classes=5)})
    bundle.save(bundle.manifest.model_copy(update={"model": own}))
    assert verdict(bundle).text == "verified against golden.npz, with the weights that its code builds"


def test_a_verdict_says_that_int8_was_calibrated_on_noise(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    facts = inspect_bundle(bundle.folder)
    assert facts.ranges is not None
    noise = facts.ranges.data.model_copy(update={"random": True})
    facts.ranges = facts.ranges.model_copy(update={"data": noise})
    assert decide_verdict(facts).text == "verified, fit for timing only: INT8 is calibrated on noise"


def test_what_is_out_of_its_limit_outweighs_what_passed_or_is_undecided(tmp_path: Path) -> None:
    bundle = failed(tmp_path / "b")
    add(bundle, accuracy=undecided(bundle), blame=blame("model.int8.onnx"))
    found = verdict(bundle)
    assert found.state is State.FAILED
    assert found.text.endswith("at least 10 dB, and 1 more")
    assert any("--blame" in step for step in found.next)
    assert any("[tolerance.int8]" in step for step in found.next)


def test_an_accuracy_beyond_its_budget_is_named_with_its_figure_and_the_budget(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    add(bundle, accuracy=evaluation(bundle.manifest.model, "fail"))
    text = verdict(bundle).text
    assert text.startswith("failed: model.int8.onnx on onnxruntime drops by +0.37 points of top-1")
    assert text.endswith("budget of 0.5")
    with pytest.raises(AccuracyError):
        evaluation(bundle.manifest.model, "fail").check()


def test_evidence_about_other_artifacts_decides_nothing(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    add(bundle, accuracy=evaluation(bundle.manifest.model, "fail"))
    changed = bundle.folder / "evidence/accuracy.json"
    content = json.loads(changed.read_text())
    content["artifacts"]["model.onnx"] = "f" * 64
    changed.write_text(json.dumps(content))
    found = verdict(bundle)
    assert found.state is State.VERIFIED
    assert any(point.label == "Outdated" and "accuracy" in point.text for point in found.points)


def test_a_failed_export_stays_failed_where_other_images_are_in_parity(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", verdict="failed")
    report: ParityReport = parity()
    assert report.verdict == "pass"
    assert verdict(bundle).text == "failed: the export of this bundle found no parity"


def test_two_engines_that_could_not_run_are_counted(tmp_path: Path) -> None:
    engines = [comparison(name, "unproven", "tensorrt", reason="no GPU here") for name in ("a.engine", "model.plan")]
    report = parity(comparison("model.onnx"), comparison("model.int8.onnx"), *engines)
    bundle = make_bundle(tmp_path / "b", report=report, engine=True)
    assert verdict(bundle).text == "verified here; 2 engines have not run yet"


def test_no_evaluation_is_advised_where_there_is_one(tmp_path: Path) -> None:
    failed = comparison("model.int8.onnx", "fail", problems=("error 0.4 exceeds 0.3",))
    bundle = make_bundle(tmp_path / "b", report=parity(comparison("model.onnx"), failed), verdict="failed")
    assert any("skdeploy evaluate" in step for step in verdict(bundle).next)
    add(bundle, accuracy=evaluation(bundle.manifest.model, "pass"))
    found = verdict(bundle)
    assert found.next
    assert not any("skdeploy evaluate" in step for step in found.next)


@pytest.mark.parametrize(("sqnr_db", "told"), [(137.0, False), (100.0, True)])
def test_only_a_network_that_amplifies_rounding_is_said_to(sqnr_db: float, told: bool) -> None:
    failed = parity(comparison("model.int8.onnx", "fail", problems=("error 0.4 exceeds 0.3",)))
    with pytest.raises(ParityError) as error:
        failed.model_copy(update={"reference_sqnr_db": sqnr_db}).check(("look",))
    assert ("amplifies rounding" in error.value.message) == told


@pytest.mark.parametrize(
    ("found_db", "words"), [(93.0, "no fault of the graph shows"), (80.0, "it is a fault, not rounding")]
)
def test_an_fp32_graph_that_fails_is_told_apart_from_rounding(found_db: float, words: str) -> None:
    row = comparison("model.onnx", "fail", problems=("error 1.5e-4 exceeds 1e-4",))
    assert row.metrics is not None
    row = row.model_copy(
        update={"precision": Precision.FP32, "metrics": row.metrics.model_copy(update={"sqnr_db": found_db})}
    )
    with pytest.raises(ParityError) as error:
        parity(row).model_copy(update={"reference_sqnr_db": 100.0}).check(("look",))
    assert f"model.onnx is {found_db:.0f} dB from torch's float32" in error.value.message
    assert words in error.value.message

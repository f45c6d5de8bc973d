"""``skdeploy tune`` where nobody knows what should come out: FP32's outputs judge."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skdeploy import load_bundle
from skdeploy.accuracy.kept import Kept
from skdeploy.line.stations.calibrate import Calibrate
from tests.cli.conftest import QUICK, Run
from tests.cli.evaluation_data import colours
from tests.networks import sk_unet

METHOD = ("--calib-method", "mse")


@pytest.fixture
def calib(tmp_path: Path, images: Path) -> Path:
    return Path(shutil.copytree(images, tmp_path / "tuning/calib"))


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    np.savez(tmp_path / "unlabelled.npz", images=colours(40, seed=5))
    return tmp_path / "unlabelled.npz"


@pytest.fixture
def sweep(bundle: Path, unlabelled: Path, calib: Path) -> list[object]:
    return ["tune", bundle, "--data", unlabelled, "--calib", calib, *METHOD]


def test_without_a_limit_the_best_by_sqnr_is_written_and_nothing_is_judged(
    run: Run, sweep: list[object], calib: Path
) -> None:
    found = run(*sweep, "--json")
    assert found.code == 0, found.err
    report = found.json
    assert (report["sample"], report["choosing"], report["confirming"]) == ("image", 20, 20)
    assert (report["max_drop"], report["confirmed"]["decision"]) == (None, None)
    winner = report["tried"][0]
    assert winner["candidate"]["fallback"] == "fp16"  # cheaper than FP32 beside INT8
    same_cost = [row["pair"]["sqnr_db"] for row in report["tried"] if row["candidate"]["fallback"] == "fp16"]
    assert winner["pair"]["sqnr_db"] == pytest.approx(max(same_cost), abs=0.5)  # SQNR of the screening decides
    recipe = tomllib.loads(Path(report["recipe"]).read_text(encoding="utf-8"))
    assert "dB against FP32" in recipe["note"]
    said = run(*sweep, "--force")
    assert f"best: {report['winner']}" in said.out
    assert "at least" in said.out  # the lower bound has a column
    assert "--min-sqnr DB" in said.out


def test_the_outputs_of_the_graph_that_an_export_makes_are_that_far_from_fp32s(
    run: Run, sweep: list[object], card: Path, weights: Path, calib: Path, tmp_path: Path
) -> None:
    """Measured here by another way: the two graphs in ONNX Runtime, with Q/DQ as the graph says."""
    import onnxruntime

    from skdeploy.images.dataset import normalise, open_dataset

    report = run(*sweep, "--json").json
    words = ("--weights", weights, "--calib", report["recipe"])
    assert run("export", card, "--int8", *QUICK, *words, "-o", tmp_path / "made", "--json").code in (0, 6)
    made = load_bundle(tmp_path / "made")
    spec = made.manifest.model
    feeds = normalise(open_dataset(tmp_path / "unlabelled.npz", spec=spec).load(spec), spec.preprocess)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    first, second = (
        onnxruntime.InferenceSession(str(tmp_path / "made" / name), options).run(["logits"], {"input": feeds})[0]
        for name in ("model.onnx", "model.int8.onnx")
    )
    noise, signal = ((second - first) ** 2).sum(1), (first**2).sum(1)
    whole = -10 * np.log10(noise.sum() / signal.sum())
    both = [report["confirmed"]["sqnr_db"], report["tried"][0]["pair"]["sqnr_db"]]  # of one half each
    assert min(both) - 0.1 <= whole <= max(both) + 0.1


@pytest.mark.parametrize(("limit", "code", "decision"), [(3, 0, "pass"), (120, 10, "fail")])
def test_a_limit_decides(limit: int, code: int, decision: str, run: Run, sweep: list[object], calib: Path) -> None:
    found = run(*sweep, "--min-sqnr", limit, "--json")
    assert found.code == code, found.err
    assert found.json["confirmed"]["decision"] == decision
    assert (calib.parent / "tiny-tuned.toml").exists() == (decision == "pass")
    if decision == "fail":
        assert f"keeps --min-sqnr {limit}" in found.json["error"]["message"]
        assert "a lower limit" in found.json["error"]["advice"]


def test_a_second_run_measures_nothing_again(run: Run, sweep: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(*sweep, "--json").json
    saved: list[Path | None] = []
    monkeypatch.setattr(Kept, "save", lambda self, *_: saved.append(self.path))
    monkeypatch.setattr(Calibrate, "make", lambda *_: pytest.fail("calibrates again"))
    again = run(*sweep, "--json", "--force").json
    assert saved == []
    for report in (first, again):
        del report["seconds"]
    assert again == first


def test_figures_that_somebody_changed_are_measured_again(run: Run, sweep: list[object], tmp_path: Path) -> None:
    first = run(*sweep, "--json").json
    for file in (tmp_path / "cache/skdeploy/predictions").glob("*.npz"):
        with np.load(file) as content:
            arrays = dict(content)
        if "noise" in arrays:
            np.savez(file, **arrays | {"noise": arrays["noise"] / 4})
    again = run(*sweep, "--json", "--force")
    assert "gives other outputs for" in again.err
    assert [row["sqnr_db"] for row in again.json["tried"]] == [row["sqnr_db"] for row in first["tried"]]


def test_a_map_of_classes_is_tuned_by_the_logits_that_decide_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text(sk_unet.CARD, encoding="utf-8")
    sk_unet.save_images(tmp_path / "data", 12, seed=10_000_000)
    sk_unet.save_images(tmp_path / "calib", 16, seed=20_000_000)
    words: tuple[Any, ...] = ("tests.networks.class_maps:class_map", "--card", tmp_path / "card.toml", *QUICK)
    assert run("export", *words, "--images", tmp_path / "data", "-o", tmp_path / "bundle").code == 0
    tune = ("tune", tmp_path / "bundle", "--data", tmp_path / "data", "--calib", tmp_path / "calib", *METHOD)
    found = run(*tune, "--json")
    assert found.code == 0, found.err
    assert 10 < found.json["confirmed"]["sqnr_db"] < 100
    refused = run(*tune, "--max-drop", 1)
    assert (refused.code, "needs targets" in refused.err, "--min-sqnr" in refused.err) == (2, True, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max-drop", 1), "--max-drop needs labels, and unlabelled.npz has none"),
        (("--max-drop", 1, "--min-sqnr", 30), "cannot be used together"),
        (("--min-sqnr", 0), "must be above 0"),
        (("--metric", "module:function"), "--metric requires --max-drop"),
        (("--class-order", "name"), "--class-order requires --max-drop"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    words: tuple[object, ...], said: str, run: Run, sweep: list[object]
) -> None:
    refused = run(*sweep, *words)
    assert refused.code == 2
    assert said in refused.err


def test_too_few_samples_and_labels_that_are_not_used_are_said(
    run: Run, bundle: Path, evaluation: Path, calib: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "few.npz", images=colours(9))
    few = run("tune", bundle, "--data", tmp_path / "few.npz", "--calib", calib, *METHOD)
    assert (few.code, "has 9 images, but tune needs 5 to choose on and 5 others" in few.err) == (2, True)
    labelled = run("tune", bundle, "--data", evaluation, "--calib", calib, *METHOD, "--min-sqnr", 3)
    assert labelled.code == 0
    assert "the labels of" in labelled.err

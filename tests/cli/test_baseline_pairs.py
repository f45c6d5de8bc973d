"""``skdeploy evaluate`` of pairs against a committed baseline, and its receipts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from skdeploy.bundle.folder import load_bundle
from skdeploy.bundle.receipts import read_receipts
from tests.cli.conftest import QUICK, Run
from tests.networks import sk_unet
from tests.pairs import save_masks

METRIC = "tests.cli.test_evaluate_pairs:right_pixels"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baseline")
    (folder / "card.toml").write_text(sk_unet.CARD, encoding="utf-8")
    save_masks(folder / "pairs", 8)
    return folder


@pytest.fixture
def bundle(run: Run, made: Path, tmp_path: Path) -> Path:
    if not (made / "bundle").exists():
        words = ("tests.networks.sk_unet:trained", "--card", made / "card.toml", "--fp16", *QUICK)
        assert run("export", *words, "--images", made / "pairs/images", "-o", made / "bundle").code == 0
    return Path(shutil.copytree(made / "bundle", tmp_path / "bundle"))


def test_the_same_bundle_is_as_good_as_its_baseline(run: Run, bundle: Path, made: Path, tmp_path: Path) -> None:
    words = ("evaluate", bundle, "--data", made / "pairs")
    file, junit = tmp_path / "baseline.json", tmp_path / "evaluate.xml"
    assert run(*words, "--save-baseline", file, "--receipt").code == 0
    content = json.loads(file.read_text(encoding="utf-8"))
    assert (content["figure"], content["unit"], content["pairs"]) == ("mIoU", "points", 8)
    assert {receipt.kind for receipt in read_receipts(load_bundle(bundle))} == {"accuracy"}
    same = run(*words, "--baseline", file, "--junit", junit)
    assert same.code == 0, same.err
    assert "within the budget of 0.2" in same.out + same.err
    assert junit.read_text(encoding="utf-8").count("skdeploy.baseline") == 2
    assert run(*words, "--baseline", file, "--json").json["decision"] == "pass"


def test_a_figure_below_the_baseline_fails_with_the_code_of_accuracy(
    run: Run, bundle: Path, made: Path, tmp_path: Path
) -> None:
    words, file = ("evaluate", bundle, "--data", made / "pairs"), tmp_path / "baseline.json"
    assert run(*words, "--save-baseline", file).code == 0
    content = json.loads(file.read_text(encoding="utf-8"))
    content["artifacts"][1]["value"] += 0.5  # it had half a point more
    file.write_text(json.dumps(content), encoding="utf-8")
    failed = run(*words, "--baseline", file)
    assert failed.code == 10
    assert "beyond the budget of 0.2" in failed.err
    assert run(*words, "--baseline", file, "--baseline-drop", "1").code == 0


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("targets_sha256", "0" * 64, "measured with other targets"),
        ("dataset_sha256", "0" * 64, "measured with other inputs"),
        ("figure", "PSNR", "measured with other figure"),
        ("pairs", 0, "is not a baseline"),
    ],
)
def test_a_baseline_of_something_else_is_refused(
    key: str, value: object, said: str, run: Run, bundle: Path, made: Path, tmp_path: Path
) -> None:
    words, file = ("evaluate", bundle, "--data", made / "pairs"), tmp_path / "baseline.json"
    assert run(*words, "--save-baseline", file).code == 0
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {key: value}), encoding="utf-8")
    refused = run(*words, "--baseline", file)
    assert refused.code == 2
    assert said in refused.err


def test_a_baseline_of_classes_does_not_fit_pairs(run: Run, bundle: Path, made: Path, tmp_path: Path) -> None:
    file, digest = tmp_path / "counted.json", "0" * 64
    head = {"schema": 1, "skdeploy": "1", "dataset": "a", "dataset_sha256": digest, "labels_sha256": digest}
    file.write_text(json.dumps(head | {"images": 5, "artifacts": []}), encoding="utf-8")
    refused = run("evaluate", bundle, "--data", made / "pairs", "--baseline", file)
    assert refused.code == 2
    assert "counts images by their classes, but this evaluation measures a figure of pairs" in refused.err


def test_a_metric_of_the_users_own_needs_its_own_budget(run: Run, bundle: Path, made: Path, tmp_path: Path) -> None:
    words, file = ("evaluate", bundle, "--data", made / "pairs", "--metric", METRIC), tmp_path / "baseline.json"
    assert run(*words, "--save-baseline", file).code == 0
    refused = run(*words, "--baseline", file)
    assert refused.code == 2
    assert "--baseline with --metric needs --baseline-drop" in refused.err
    assert run(*words, "--baseline", file, "--baseline-drop", "0.01").code == 0

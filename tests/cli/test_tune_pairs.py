"""``skdeploy tune`` on pairs: screened by SQNR, judged by the task's own measure, on halves that do not meet."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from skdeploy.core.errors import UsageError
from skdeploy.core.spec import ModelSpec
from skdeploy.images.pairs import open_pairs
from skdeploy.tuning.split import pair_halves
from tests import tiny
from tests.cli.conftest import QUICK, Run
from tests.networks import sk_unet
from tests.pairs import save_masks

METRIC = "tests.cli.test_tune_pairs:right"
PAIRS = 24


def right(outputs: dict[str, Any], target: Any) -> float:
    """The share of pixels with the right class, of a network that gives nothing but classes."""
    return float((outputs["output"] == target).mean())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    (folder / "card.toml").write_text(sk_unet.CARD, encoding="utf-8")
    save_masks(folder / "pairs", PAIRS)
    sk_unet.save_images(folder / "calib", 16, seed=20_000_000)
    return folder


@pytest.fixture
def bundle(run: Run, made: Path) -> Path:
    """Of a network that ends in an ArgMax, in FP32: what is screened is before its outputs."""
    if not (made / "bundle").exists():
        words = ("tests.networks.class_maps:class_map", "--card", made / "card.toml", *QUICK)
        assert run("export", *words, "--images", made / "pairs/images", "-o", made / "bundle").code == 0
    return made / "bundle"


def tuned(run: Run, bundle: Path, *words: object) -> Any:
    folder = bundle.parent
    data = ("--data", folder / "pairs", "--calib", folder / "calib", "--calib-method", "mse")
    return run("tune", bundle, *data, *words, *(() if "--shard" in words else ("--force",)))


@pytest.mark.slow
def test_the_winner_keeps_the_budget_of_miou(run: Run, bundle: Path) -> None:
    found = tuned(run, bundle, "--max-drop", 20, "--json")
    assert found.code == 0, found.err
    report = found.json
    assert (report["images"], report["choosing"], report["confirming"]) == (PAIRS, PAIRS // 2, PAIRS // 2)
    assert (report["confirmed"]["figure"], report["confirmed"]["unit"]) == ("mIoU", "points")
    assert report["confirmed"]["decision"] == "pass"
    rows = [row for row in report["tried"] if not row["refused"]]
    assert all(10 < row["sqnr_db"] < 100 for row in rows)  # of the logits: a map alone has no decibels
    assert all(row["pair"]["figure"] == "mIoU" for row in rows)
    recipe = tomllib.loads(Path(report["recipe"]).read_text(encoding="utf-8"))
    assert recipe["method"] == "mse"
    assert "points of mIoU" in recipe["note"]
    again = tuned(run, bundle, "--max-drop", 20)
    assert again.code == 0, again.err
    assert "24 pairs of pairs" in again.out
    assert "within the budget" in again.out
    assert run(
        "export", "tests.networks.class_maps:class_map", "--card", bundle.parent / "card.toml", "--int8", *QUICK,
        "--calib", report["recipe"], "-o", bundle.parent / "again",
    ).code == 0  # fmt: skip


def test_a_metric_of_the_users_own_decides(run: Run, bundle: Path) -> None:
    found = tuned(run, bundle, "--max-drop", 0.5, "--metric", METRIC, "--json")
    assert found.code == 0, found.err
    assert found.json["confirmed"]["figure"] == METRIC
    assert "your code" in found.err


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--max-drop", 20), ("--max-drop", 0.5, "--metric", METRIC), ("--min-sqnr", 10)])
def test_parts_give_the_report_of_one_run(
    run: Run, bundle: Path, words: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three kinds of figures: a mean IoU, a metric of the user's own, and SQNR."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    screened, judged = ("--parts", tmp_path / "screen-*"), ("--parts", tmp_path / "judge-*")
    for index in (1, 2):
        done = tuned(run, bundle, *words, "--shard", f"{index}/2", "-o", tmp_path / f"screen-{index}")
        assert done.code == 0, done.err
    for index in (1, 2, 3):
        done = tuned(run, bundle, *words, *screened, "--shard", f"{index}/3", "-o", tmp_path / f"judge-{index}")
        assert done.code == 0, done.err
    merged = tuned(run, bundle, *words, *screened, *judged, "--json")
    shutil.rmtree(tmp_path / "cache")
    whole = tuned(run, bundle, *words, "--json")
    assert (merged.code, whole.code) == (0, 0), merged.err
    assert {**merged.json, "seconds": 0} == {**whole.json, "seconds": 0}


def test_what_would_be_tried_is_said_of_pairs(run: Run, bundle: Path) -> None:
    said = tuned(run, bundle, "--max-drop", 20, "--dry-run")
    assert said.code == 0, said.err
    assert f"screened on {PAIRS // 2} pairs" in said.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max-drop", 1, "--class-order", "name"), "--class-order is for images with class labels"),
        (("--max-drop", 1, "--confidence", 99.99), "at most 99.9 for mIoU"),
        (("--max-drop", 200), "must be from 0 to 100"),
    ],
)
def test_options_that_do_not_fit_pairs_are_refused(
    words: tuple[object, ...], said: str, run: Run, bundle: Path
) -> None:
    refused = tuned(run, bundle, *words)
    assert refused.code == 2
    assert said in refused.err


def test_the_halves_are_the_same_each_time_and_do_not_meet(made: Path) -> None:
    spec: ModelSpec = tiny.spec_of(height=48, width=48)
    pairs = open_pairs(made / "pairs", spec)
    first, second = pair_halves(pairs), pair_halves(pairs)
    assert first.choosing.files == second.choosing.files
    assert not set(first.choosing.files) & set(first.confirming.files)
    assert set(first.choosing.files) | set(first.confirming.files) == set(pairs.files)
    assert [file.name for file in first.choosing.files] == [file.name for file in first.choosing.inputs.files]
    with pytest.raises(UsageError, match="has 9 pairs, but tune needs 5 to choose on and 5 others"):
        pair_halves(pairs.take(range(9)))

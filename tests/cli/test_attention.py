"""``skdeploy attention`` on exported bundles: what it prints and keeps, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from skdeploy.attention.report import AttentionReport
from skdeploy.bundle.evidence import read_evidence
from skdeploy.bundle.folder import load_bundle
from tests.cli.conftest import QUICK, Run

SCALES = ("--scales", "1,1.5,2")


@pytest.fixture(scope="session")
def sums(card: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of a network whose units sum their branches."""
    path = tmp_path_factory.mktemp("sums") / "sums.toml"
    text = card.read_text(encoding="utf-8").replace('fuse = "attention"', 'fuse = "sum"')
    path.write_text(
        text.replace('name = "tiny"', 'name = "sums"').replace("parameters = 3_421\n", ""), encoding="utf-8"
    )
    return path


def kept(bundle: Path) -> AttentionReport:
    report = read_evidence(load_bundle(bundle), "attention", AttentionReport)
    assert report is not None
    return report


def test_the_report_is_kept_in_the_bundle_and_its_curves_are_in_the_csv(
    run: Run, bundle: Path, images: Path, tmp_path: Path
) -> None:
    before = (bundle / "manifest.json").read_bytes()
    result = run("attention", bundle, "--data", images, *SCALES, "--csv", tmp_path / "a.csv")
    assert result.code == 0
    report = kept(bundle)
    assert (report.images, report.scales, report.sizes) == (4, (1.0, 1.5, 2.0), (36, 54, 72))
    assert [(graph.name, graph.artifact) for graph in report.graphs] == [
        ("fp32", "model.onnx"),
        ("fp16", "model.fp16.onnx"),
    ]
    assert report.interpolated == 1  # the images have 40 pixels, and 72 are shown
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 2  # units, scales, graphs
    assert float(rows[1]["difference"]) == report.units[0].curves[0].differences[1]
    assert (bundle / "manifest.json").read_bytes() == before
    assert run("verify", bundle, "--images", images).code == 0


def test_json_is_the_report_and_profiles_are_those_asked_for(run: Run, bundle: Path, images: Path) -> None:
    result = run("attention", bundle, "--data", images, *SCALES, "--profile", "SK_2_1", "--json")
    assert result.code == 0
    report = AttentionReport.model_validate_json(json.dumps(result.report))
    assert report == kept(bundle)
    first, second = report.units
    assert [profile.scale for profile in first.curves[0].profiles] == [1.0, 2.0]
    assert len(first.curves[0].profiles[0].attention) == first.channels == 8
    assert second.curves[0].profiles == ()


def test_fp32_fp16_and_int8_are_measured_side_by_side(run: Run, bundle: Path, once_int8: Path, images: Path) -> None:
    result = run("attention", bundle, "--also", once_int8, "--data", images, *SCALES, "--json")
    assert result.code == 0, result.err
    report = AttentionReport.model_validate_json(json.dumps(result.report))
    assert [(graph.name, graph.bundle) for graph in report.graphs] == [
        ("fp32", "bundle"), ("fp16", "bundle"), ("int8", "int8"),
    ]  # fmt: skip
    for unit in report.units:
        fp32, fp16, int8_ = unit.activity
        # tests/attention/test_gates.py has the reasons; gates of untrained weights are flatter than those there.
        assert fp32.mean_abs_difference == 0
        assert 0 < fp16.mean_abs_difference < 0.012
        assert fp16.mean_abs_difference < int8_.mean_abs_difference < 0.1


def test_another_form_of_the_same_network_says_the_same(
    run: Run, bundle: Path, card: Path, images: Path, weights: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    form = ("--attention", "--embed-preprocess", "--batch", "3")
    made = run("export", card, *QUICK, *form, "--images", images, "--weights", weights, "-o", other)
    assert made.code == 0, made.err
    for folder in (bundle, other):
        assert run("attention", folder, "--data", images, *SCALES).code == 0
    for ours, theirs in zip(kept(bundle).units, kept(other).units, strict=True):
        # The same weights: float32 rounding.
        np.testing.assert_allclose(ours.curves[0].differences, theirs.curves[0].differences, atol=1e-5)


def test_without_a_card_branches_are_called_by_number(run: Run, bundle: Path, images: Path, tmp_path: Path) -> None:
    other = tmp_path / "foreign"
    made = run("export", bundle / "model.onnx", "--images", images, "--target", "onnx", "-o", other)
    assert made.code == 0, made.err
    refused = run("attention", other, "--data", images, *SCALES)  # without a card the preprocessing is assumed, too
    assert refused.code == 2
    assert "mean 0.485 0.456 0.406" in refused.err
    result = run("attention", other, "--data", images, *SCALES, "--assume-imagenet")
    assert result.code == 0, result.err
    assert "branch 1 - branch 0" in result.out
    assert "SK_" not in result.out
    assert kept(other).graphs[0].precision == "fp32"


def test_units_that_sum_their_branches_have_no_attention(run: Run, sums: Path, images: Path, tmp_path: Path) -> None:
    made = run("export", sums, "--images", images, *QUICK, "-o", tmp_path / "bundle")
    assert made.code == 0, made.err
    result = run("attention", tmp_path / "bundle", "--data", images)
    assert result.code == 2
    assert "has no attention to measure: the units of sums sum their branches" in result.err


def test_an_unreadable_image_is_passed_over_and_named_once_and_too_many_are_refused(
    run: Run, bundle: Path, images: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(100):
        shutil.copy(images / f"{index % 4}.png", folder / f"{index:03}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG and nothing else")
    result = run("attention", bundle, "--data", folder, *SCALES)
    assert result.code == 0, result.err
    assert result.err.count("left out broken.png") == 1
    assert kept(bundle).images == 100
    assert [image.name for image in kept(bundle).unreadable] == ["broken.png"]
    (folder / "000.png").write_bytes(b"")
    (bundle / "evidence/attention.json").unlink()
    result = run("attention", bundle, "--data", folder, *SCALES)
    assert result.code == 6
    assert "2 of the 101" in result.err
    assert not (bundle / "evidence/attention.json").exists()


def test_figure_and_names_of_hostile_folders(run: Run, bundle: Path, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "[red]$x^{$ & <b> 写真"
    shutil.copytree(images, folder)
    result = run("attention", bundle, "--data", folder, *SCALES, "--figure", tmp_path / "a.svg")
    assert result.code == 0, result.err
    assert "images of [red]$x^{$ & <b> 写真" in result.out
    assert "[red]$x^{$ &amp; &lt;b&gt; 写真" in (tmp_path / "a.svg").read_text(encoding="utf-8")

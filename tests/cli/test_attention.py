"""``skdeploy attention`` on exported bundles: what it prints and keeps, and what it refuses."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skdeploy.attention.report import AttentionReport
from skdeploy.bundle.evidence import read_evidence
from skdeploy.bundle.folder import load_bundle
from tests.cli.conftest import QUICK

Run = Callable[..., Any]
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


def test_it_prints_every_unit_and_keeps_the_report_in_the_bundle(
    run: Run, bundle: Path, images: Path, tmp_path: Path
) -> None:
    before = (bundle / "manifest.json").read_bytes()
    result = run("attention", bundle, "--data", images, *SCALES, "--csv", tmp_path / "a.csv")
    assert result.code == 0
    assert "SK_2_1 (stages.0.0)  5x5 - 3x3" in result.out
    assert "SK_3_1 (stages.1.0)  fp16" in result.out
    assert "fp16 says the same in" in result.out
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
    report = AttentionReport.model_validate(result.json)
    assert report == kept(bundle)
    first, second = report.units
    assert [profile.scale for profile in first.curves[0].profiles] == [1.0, 2.0]
    assert len(first.curves[0].profiles[0].attention) == first.channels == 8
    assert second.curves[0].profiles == ()


def test_fp32_fp16_and_int8_are_measured_side_by_side(
    run: Run, bundle: Path, card: Path, images: Path, weights: Path, tmp_path: Path
) -> None:
    int8 = tmp_path / "int8"
    made = run(
        "export", card, "--int8", "--calib", images, "--images", images, "--weights", weights, *QUICK, "-o", int8
    )  # fmt: skip
    assert made.code == 0, made.err
    result = run("attention", bundle, "--also", int8, "--data", images, *SCALES, "--json")
    assert result.code == 0, result.err
    report = AttentionReport.model_validate(result.json)
    assert [(graph.name, graph.bundle) for graph in report.graphs] == [
        ("fp32", "bundle"), ("fp16", "bundle"), ("int8", "int8"),
    ]  # fmt: skip
    for unit in report.units:
        fp32, fp16, int8_ = unit.activity
        # tests/attention/test_gates.py has the reasons; gates of untrained weights are flatter than those there.
        assert fp32.mean_abs_difference == 0
        assert 0 < fp16.mean_abs_difference < 0.012
        assert fp16.mean_abs_difference < int8_.mean_abs_difference < 0.1


@pytest.mark.parametrize(
    "form",
    [["--attention"], ["--embed-preprocess"], ["--attention", "--batch", "3", "--exporter", "dynamo"]],
    ids=" ".join,
)
def test_other_forms_of_the_same_network_say_the_same(
    run: Run, bundle: Path, card: Path, images: Path, weights: Path, tmp_path: Path, form: list[str]
) -> None:
    other = tmp_path / "other"
    made = run("export", card, *QUICK, *form, "--images", images, "--weights", weights, "-o", other)
    assert made.code == 0, made.err
    for folder in (bundle, other):
        assert run("attention", folder, "--data", images, *SCALES).code == 0
    for ours, theirs in zip(kept(bundle).units, kept(other).units, strict=True):
        # The same weights, through another exporter in one case: float32 rounding.
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


def test_the_report_no_longer_holds_once_the_bundle_is_made_again(
    run: Run, bundle: Path, again: list[object], images: Path
) -> None:
    assert run("attention", bundle, "--data", images, *SCALES).code == 0
    assert run(*again, "-o", bundle, "--keep-fp32", "^classifier$").code == 0
    assert read_evidence(load_bundle(bundle), "attention", AttentionReport) is None


def test_units_that_sum_their_branches_have_no_attention(run: Run, sums: Path, images: Path, tmp_path: Path) -> None:
    made = run("export", sums, "--images", images, *QUICK, "-o", tmp_path / "bundle")
    assert made.code == 0, made.err
    result = run("attention", tmp_path / "bundle", "--data", images)
    assert result.code == 2
    assert "has no attention to measure: the units of sums sum their branches" in result.err


def test_one_image_is_too_few(run: Run, bundle: Path, images: Path) -> None:
    for arguments in (("--data", images / "0.png"), ("--data", images, "--num-images", 1)):
        result = run("attention", bundle, *arguments)
        assert result.code == 2
        assert "has 1 image: a mean over images, and how sure it is, needs two at least" in result.err
    assert run("attention", bundle, "--data", images, "--num-images", 0).code == 2
    assert not (bundle / "evidence").exists()


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
    assert result.err.count("passed over broken.png") == 1
    assert kept(bundle).images == 100
    assert [image.name for image in kept(bundle).unreadable] == ["broken.png"]
    (folder / "000.png").write_bytes(b"")
    (bundle / "evidence/attention.json").unlink()
    result = run("attention", bundle, "--data", folder, *SCALES)
    assert result.code == 6
    assert "2 of the 101" in result.err
    assert not (bundle / "evidence/attention.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scales", "1.0"), "1 scale, and the experiment compares scales"),
        (("--scales", "0.9,2"), "0.9 is not from 1 to 4"),
        (("--scales", "1,2,2"), "2 and 2 both resize to 72 pixels"),
        (("--scales", "1,two"), "'two' is not a number"),
        (("--profile", "SK_9_9"), "--profile SK_9_9: no unit has this name"),
        (("--figure", "a.gif"), "--figure a.gif: the format is none of .svg, .png, .pdf"),
        (("--data", "nowhere"), "no images at nowhere"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    run: Run, bundle: Path, images: Path, arguments: tuple[str, str], message: str
) -> None:
    result = run("attention", bundle, *(() if "--data" in arguments else ("--data", images)), *arguments)
    assert result.code == 2
    assert message in result.err
    assert not (bundle / "evidence").exists()


def test_bundles_of_other_weights_or_of_no_other_precision_are_no_company(
    run: Run, bundle: Path, card: Path, images: Path, tmp_path: Path
) -> None:
    made = run("export", card, "--images", images, *QUICK, "-o", tmp_path / "random")
    assert made.code == 0, made.err
    result = run("attention", bundle, "--data", images, "--also", tmp_path / "random")
    assert result.code == 2
    assert f"--also {tmp_path / 'random'}: it is tiny with other weights" in result.err
    result = run("attention", bundle, "--data", images, "--also", bundle)
    assert result.code == 2
    assert "its graph model.fp16.onnx is measured already" in result.err


def test_an_altered_graph_is_refused(run: Run, bundle: Path, images: Path) -> None:
    path = bundle / "model.fp16.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    result = run("attention", bundle, "--data", images)
    assert result.code == 9
    assert f"{path} is not the file that the manifest describes" in result.err


def test_figure_and_names_of_hostile_folders(run: Run, bundle: Path, images: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "[red]$x^{$ & <b> 写真"
    shutil.copytree(images, folder)
    result = run("attention", bundle, "--data", folder, *SCALES, "--figure", tmp_path / "a.svg")
    assert result.code == 0, result.err
    assert "images of [red]$x^{$ & <b> 写真" in result.out
    assert "[red]$x^{$ &amp; &lt;b&gt; 写真" in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_photographs_with_pixels_to_spare_are_not_said_to_be_blurred(run: Run, bundle: Path, tmp_path: Path) -> None:
    photographs = np.random.default_rng(0).integers(0, 256, (5, 90, 80, 3), dtype=np.uint8)
    np.savez(tmp_path / "photographs.npz", images=photographs)
    result = run("attention", bundle, "--data", tmp_path / "photographs.npz", *SCALES, "--json")
    assert result.code == 0, result.err
    assert result.json["interpolated"] == 0  # 80 pixels, of which at most 72 are shown

"""``skdeploy sensitivity`` and the table of kept units, as a user meets them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from skdeploy.cli.sensitivity import print_mixed, print_sensitivity
from skdeploy.core.spec import Precision, Target
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.export import export
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions
from skdeploy.quant.mixed import Drop, KeptUnit, MixedPrecision
from skdeploy.quant.sensitivity import SensitivityReport
from tests.conftest import FAST

Run = Callable[..., Any]
UNITS = {"stem.conv", "stages.0.0", "stages.1.0", "classifier"}


@pytest.fixture(scope="session")
def exported_int8(card: Path, images: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An INT8 bundle; one unit is kept out of it, as after --max-drop. Nothing below changes it."""
    folder = tmp_path_factory.mktemp("exported") / "int8"
    export(
        ExportOptions(
            str(card),
            Precision.INT8,
            output=folder,
            weights=str(weights),
            trace=FAST,
            images=images,
            target=Target.ONNX,
            int8=Int8Options(calibration=CalibrationOptions(images=images), keep=(r"^stages\.1\.0",)),
        )
    )
    return folder


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Twenty images of noise with labels, sorted by class as data often is."""
    pixels = np.random.default_rng(1).integers(0, 256, (20, 36, 36, 3), dtype=np.uint8)
    path = tmp_path / "eval.npz"
    np.savez(path, images=pixels, labels=np.arange(20) // 4)
    return path


def test_the_table_has_every_unit_and_how_to_read_it(run: Run, exported_int8: Path, labelled: Path) -> None:
    result = run("sensitivity", exported_int8, "--data", labelled)
    assert result.code == 0, result.err
    assert "tiny in INT8 against FP32, on 20 images of eval.npz" in result.out
    header = next(line for line in result.out.splitlines() if line.startswith("unit"))
    assert header.split("  ")[0] == "unit"
    for column in ("only it: SQNR", "top-1", "all but it: SQNR", "MACs", "parameters"):
        assert column in header
    rows = [line.split() for line in result.out.splitlines() if line.split()[:1] and line.split()[0] in UNITS]
    assert {row[0] for row in rows} == UNITS  # the one that the export kept too
    decibels = [float(row[1]) for row in rows]
    assert decibels == sorted(decibels)
    assert "everything in INT8:" in result.out
    assert "one image is 5 points" in result.out
    escaped = rows[0][0].replace(".", r"\.")
    assert rf"--int8-keep '^{escaped}(\.|$)'" in result.out


def test_json_is_the_report_and_nothing_else_and_repeats(run: Run, exported_int8: Path, labelled: Path) -> None:
    result = run("sensitivity", exported_int8, "--data", labelled, "--json")
    report = SensitivityReport.model_validate_json(result.out)
    assert report.images == 20
    assert {row.unit for row in report.units} == UNITS
    assert report.fp32.top1 is not None
    assert run("sensitivity", exported_int8, "--data", labelled, "--json").out == result.out


def test_without_labels_there_are_decibels_and_classes_but_no_top1(run: Run, exported_int8: Path, images: Path) -> None:
    result = run("sensitivity", exported_int8, "--data", images)
    assert result.code == 0, result.err
    assert "same class" in result.out
    assert "top-1" not in result.out
    assert "dB" in result.out


def test_without_data_the_cards_images_are_used(run: Run, exported_int8: Path) -> None:
    result = run("sensitivity", exported_int8, "--num-images", 3)
    assert result.code == 0, result.err
    assert "on 3 images of photographs" in result.out


def test_few_of_many_images_are_a_balanced_choice(run: Run, exported_int8: Path, tmp_path: Path) -> None:
    """The first four of this file are of one class, as in all data that comes sorted; four of both are two and two."""
    image = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    session = ort.InferenceSession(exported_int8 / "model.onnx", providers=["CPUExecutionProvider"])
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    planes = ((image / 255 - mean) / std).transpose(2, 0, 1).astype(np.float32)
    seen = int(session.run(["logits"], {"input": planes[None]})[0].argmax())
    labels = np.array([seen] * 16 + [(seen + 1) % 5] * 4)
    np.savez(tmp_path / "sorted.npz", images=np.stack([image] * 20), labels=labels)
    for count, right in ((20, 0.8), (4, 0.5)):
        result = run("sensitivity", exported_int8, "--data", tmp_path / "sorted.npz", "--num-images", count, "--json")
        assert result.json["images"] == count
        assert result.json["fp32"]["top1"] == pytest.approx(right)


def test_a_bundle_that_is_not_int8_says_how_to_make_one(run: Run, bundle: Path, images: Path) -> None:
    result = run("sensitivity", bundle, "--data", images)
    assert result.code == 2
    assert "has no ranges.json: it is a bundle of fp16" in result.err
    assert "skdeploy export tiny --int8 --calib" in result.err


def test_what_is_no_bundle_is_refused(run: Run, tmp_path: Path) -> None:
    result = run("sensitivity", tmp_path)
    assert result.code == 2
    assert "is not a bundle" in result.err


@pytest.mark.parametrize(
    ("labels", "reason"),
    [(np.arange(4) + 2, r"images[3] in bad.npz has label 5, and tiny has 5 classes"), (np.arange(3), "labels")],
)
def test_labels_that_do_not_fit_are_refused(
    run: Run, exported_int8: Path, tmp_path: Path, labels: np.ndarray, reason: str
) -> None:
    np.savez(tmp_path / "bad.npz", images=np.zeros((4, 36, 36, 3), np.uint8), labels=labels)
    result = run("sensitivity", exported_int8, "--data", tmp_path / "bad.npz")
    assert result.code == 2
    assert reason in result.err


@pytest.mark.parametrize("count", [0, -1])
def test_no_images_at_all_are_refused(run: Run, exported_int8: Path, images: Path, count: int) -> None:
    result = run("sensitivity", exported_int8, "--data", images, "--num-images", count)
    assert result.code == 2
    assert "--num-images" in result.err


def test_an_altered_graph_or_ranges_file_is_found(run: Run, exported_int8: Path, images: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported_int8, tmp_path / "copy"))
    ranges = json.loads((copy / "ranges.json").read_text())
    next(iter(ranges["tensors"].values()))["threshold"] *= 2
    (copy / "ranges.json").write_text(json.dumps(ranges))
    result = run("sensitivity", copy, "--data", images)
    assert result.code == 9
    assert "is not the file that the manifest describes" in result.err


def mixed(*kept: KeptUnit) -> MixedPrecision:
    return MixedPrecision(
        model="tiny", dataset="eval.npz", images=1000, max_drop=0.5, fp32_top1=0.9, top1=0.896,
        drop=Drop(images=1000, lost=7, gained=3), sqnr_db=30.5, int8_mac_share=0.873,
        keep=tuple(unit.pattern for unit in kept), kept=kept,
        units=5, ranking_images=128, evaluations=4 if kept else 1, probes=(),
    )  # fmt: skip


def test_kept_units_say_why_and_what_they_saved(capsys: pytest.CaptureFixture[str]) -> None:
    unit = KeptUnit(
        unit="stages.0.0", pattern=r"^stages\.0\.0(\.|$)", reason="", sqnr_db=12.34, noise_share=0.61, macs=1, mac_share=0.127,
        sqnr_before=11.0, drop_before=2.4,
    )  # fmt: skip
    print_mixed(mixed(unit))
    out = capsys.readouterr().out
    assert "top-1 89.60%, FP32 90.00%: a drop of 0.40 points (standard error 0.32), allowed 0.5" in out
    assert "on 1,000 images of eval.npz: 7 lost, 3 gained" in out
    row = next(line for line in out.splitlines() if line.startswith("stages.0.0"))
    assert row.split() == ["stages.0.0", "12.3", "dB", "61.0%", "12.7%", "11.0", "dB", "19.5", "dB", "2.40"]
    assert r"--int8-keep '^stages\.0\.0(\.|$)'" in out
    assert "87.3% of the MACs are INT8; 1 of 5 units kept; 4 runs of INT8 on all images, 5 units on 128" in out
    assert "1,000 images do not prove on which side of 0.5" in out


def test_nothing_kept_needs_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_mixed(mixed())
    out = capsys.readouterr().out
    assert "kept out of INT8" not in out
    assert "--int8-keep" not in out
    assert "0 of 5 units kept; 1 run of INT8 on all images\n" in out


def test_names_with_brackets_are_no_markup(capsys: pytest.CaptureFixture[str], run: Run, exported_int8: Path) -> None:
    found = SensitivityReport.model_validate_json(run("sensitivity", exported_int8, "--num-images", 2, "--json").out)
    row = found.units[0].model_copy(update={"unit": "a[bold]b", "pattern": "a[bold]b"})
    print_sensitivity(found.model_copy(update={"units": (row,), "dataset": "[red]x"}))
    out = capsys.readouterr().out
    assert out.count("a[bold]b") == 2
    assert "images of [red]x" in out

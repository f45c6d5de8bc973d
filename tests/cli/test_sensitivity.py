"""``skdeploy sensitivity`` and the table of kept units, as a user meets them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from skdeploy.quant.effect import Effect
from skdeploy.quant.mixed import KeptUnit, MixedPrecision
from skdeploy.quant.sensitivity import SensitivityReport, UnitSensitivity
from skdeploy.quant.truth import Drop
from skdeploy.report.int8 import mixed_findings, sensitivity_findings
from skdeploy.report.terminal import Terminal
from tests.cli.conftest import Run

UNITS = {"stem.conv", "stages.0.0", "stages.1.0", "classifier"}


def test_json_is_the_report_and_nothing_else_and_repeats(run: Run, once_int8: Path, evaluation: Path) -> None:
    result = run("sensitivity", once_int8, "--data", evaluation, "--json")
    report = SensitivityReport.model_validate_json(json.dumps(result.report))
    assert report.images == 40
    assert {row.unit for row in report.units} == UNITS
    assert report.fp32.top1 is not None
    assert run("sensitivity", once_int8, "--data", evaluation, "--json").out == result.out


def test_without_data_the_cards_images_are_used(run: Run, once_int8: Path) -> None:
    result = run("sensitivity", once_int8, "--num-images", 3)
    assert result.code == 0, result.err
    assert "on 3 images of photographs" in result.out


def test_an_altered_graph_or_ranges_file_is_found(run: Run, once_int8: Path, images: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(once_int8, tmp_path / "copy"))
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


def print_mixed(*kept: KeptUnit) -> None:
    for block in mixed_findings(mixed(*kept)):
        Terminal().show(block)


def test_kept_units_say_why_and_what_they_saved(capsys: pytest.CaptureFixture[str]) -> None:
    unit = KeptUnit(
        unit="stages.0.0", pattern=r"^stages\.0\.0(\.|$)", reason="", sqnr_db=12.34, noise_share=0.61, macs=1, mac_share=0.127,
        sqnr_before=11.0, drop_before=2.4,
    )  # fmt: skip
    print_mixed(unit)
    out = capsys.readouterr().out
    assert "top-1 89.60 %, FP32 90.00 %: a drop of 0.40 points (standard error 0.32), allowed 0.5" in out
    assert "on 1,000 images of eval.npz: 7 lost, 3 gained" in out
    row = next(line for line in out.splitlines() if line.startswith("stages.0.0"))
    assert row.split() == ["stages.0.0", "12.3", "dB", "61.0", "%", "12.7", "%", "11.0", "dB", "19.5", "dB", "2.40"]
    assert r"--int8-keep '^stages\.0\.0(\.|$)'" in out
    assert "1 of 5 units kept out of INT8; 4 runs of INT8 on all images, 5 units on 128" in out
    assert "1,000 images are too few to prove whether it is above or below 0.5" in out


def test_nothing_kept_needs_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_mixed()
    out = capsys.readouterr().out
    assert "kept out of INT8" not in out
    assert "--int8-keep" not in out
    assert "units kept" not in out


def test_names_with_brackets_are_no_markup(capsys: pytest.CaptureFixture[str], run: Run, once_int8: Path) -> None:
    told = run("sensitivity", once_int8, "--num-images", 2, "--json")
    found = SensitivityReport.model_validate_json(json.dumps(told.report))
    row = found.units[0].model_copy(update={"unit": "a[bold]b", "pattern": "a[bold]b"})
    Terminal().section(sensitivity_findings(found.model_copy(update={"units": (row,), "dataset": "[red]x"})))
    out = capsys.readouterr().out
    assert out.count("a[bold]b") == 2
    assert "images of [red]x" in out


def test_a_network_without_images_is_measured_on_samples_and_the_table_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    effect = Effect(sqnr_db=24.6, agreement=1.0)
    unit = UnitSensitivity(
        unit="first_of_all",
        pattern="a",
        layers=1,
        macs=1,
        mac_share=0.941,
        parameters=2_320,
        only_on=effect,
        only_off=effect,
    )
    report = SensitivityReport(
        model="tiny",
        dataset="random noise",
        images=16,
        macs=1,
        fp32=effect,
        all_int8=effect,
        units=(unit,),
        sample="sample",
    )
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    Terminal().section(sensitivity_findings(report))
    out = capsys.readouterr().out
    assert "on 16 samples of random noise" in out
    assert "one sample is 6.2 points" in " ".join(out.split())
    assert "image" not in out
    assert any(line.startswith("first_of_all") for line in out.splitlines())  # a name is not broken to save a column

"""``skdeploy report``: a bundle as an export leaves it, as one page."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run
from tests.cli.edited import edited_row


def test_the_report_is_written_into_the_bundle_and_its_place_printed(run: Run, bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    result = run("report", bundle)
    assert (result.code, result.out.strip()) == (0, str(bundle / "report.html"))
    html = (bundle / "report.html").read_text(encoding="utf-8")
    assert "tiny" in html
    parity = json.loads((bundle / "parity.json").read_text())
    for comparison in parity["comparisons"]:
        assert f"{comparison['metrics']['min_sqnr_db']:.1f} dB" in html
    assert (bundle / "manifest.json").read_bytes() == before


def test_the_report_goes_where_it_is_asked_to(run: Run, bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "made" / "here.html"
    assert run("report", bundle, "-o", target).code == 0
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not (bundle / "report.html").exists()


def test_a_record_that_no_station_writes_is_named_and_leaves_no_report(run: Run, bundle: Path) -> None:
    with edited_row(bundle, "model.traced.onnx") as row:
        row["provenance"]["options"]["opset"] = "the newest"
    result = run("report", bundle)
    assert result.code == 9
    assert "does not show how model.traced.onnx was made: options.opset: Input should be a valid integer" in result.err
    assert not (bundle / "report.html").exists()

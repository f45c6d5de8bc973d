"""``skdeploy report``: a bundle as an export leaves it, as one page."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run


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


def test_a_bundle_with_a_report_is_still_one(run: Run, bundle: Path, again: list[object]) -> None:
    assert run("report", bundle).code == 0
    assert run("inspect", bundle).code == 0
    assert run(*again, "--output", bundle).code == 0
    assert (bundle / "report.html").exists()


def test_the_report_goes_where_it_is_asked_to(run: Run, bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "made" / "here.html"
    assert run("report", bundle, "-o", target).code == 0
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not (bundle / "report.html").exists()


def test_what_is_no_bundle_is_refused(run: Run, tmp_path: Path) -> None:
    result = run("report", tmp_path)
    assert result.code == 2
    assert "not a bundle" in result.err


def test_an_incomplete_bundle_gets_a_report_that_says_so(run: Run, bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["verdict"] = "incomplete"
    manifest["artifacts"] = manifest["artifacts"][:1]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert run("report", bundle).code == 0
    html = (bundle / "report.html").read_text(encoding="utf-8")
    assert 'data-state="not finished"' in html


def test_an_altered_artifact_and_damaged_evidence_are_named_and_leave_no_report(run: Run, bundle: Path) -> None:
    evidence = bundle / "evidence/blame.json"
    evidence.parent.mkdir()
    evidence.write_text("{")
    result = run("report", bundle)
    assert result.code == 9
    assert "blame.json" in result.err
    evidence.unlink()
    (bundle / "model.onnx").write_bytes(b"other")
    result = run("report", bundle)
    assert result.code == 9
    assert "model.onnx" in result.err
    assert not (bundle / "report.html").exists()


def test_a_part_of_the_bundle_is_no_place_for_the_report(run: Run, bundle: Path) -> None:
    before = (bundle / "model.onnx").read_bytes()
    result = run("report", bundle, "--output", bundle / "model.onnx")
    assert result.code == 2
    assert (bundle / "model.onnx").read_bytes() == before


def test_a_record_that_no_station_writes_is_named_and_leaves_no_report(run: Run, bundle: Path) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    traced = next(row for row in manifest["artifacts"] if row["path"] == "model.traced.onnx")
    traced["provenance"]["options"]["opset"] = "the newest"
    path.write_text(json.dumps(manifest), encoding="utf-8")
    result = run("report", bundle)
    assert result.code == 9
    assert "does not say how model.traced.onnx was made: options.opset: Input should be a valid integer" in result.err
    assert not (bundle / "report.html").exists()

"""A bundle whose manifest is of schema 1, with what a station said as an untyped dictionary, is a bundle as any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skdeploy.bundle.folder import load_bundle
from skdeploy.bundle.station_facts import HalfFacts
from tests.cli.conftest import Run
from tests.cli.edited import edited


@pytest.fixture
def old(bundle: Path) -> Path:
    """The bundle as an earlier version wrote it: today's facts as details, the station's name in the provenance."""
    with edited(bundle) as manifest:
        assert manifest["schema"] == 2
        manifest["schema"] = 1
        for row in manifest["artifacts"]:
            facts = row.pop("facts")
            row["provenance"] = {"stage": facts.pop("station"), **row["provenance"]}
            row["details"] = facts | {"said_by_no_station_of_today": 1}
    return bundle


def test_it_opens_with_typed_facts(old: Path, exported: Path) -> None:
    half = load_bundle(old).artifact("model.fp16.onnx")
    assert half is not None
    assert half.facts_as(HalfFacts).fp16_tensors
    assert load_bundle(old).manifest == load_bundle(exported).manifest


def test_it_is_verified_and_reported(run: Run, old: Path, images: Path) -> None:
    assert run("verify", old, "--images", images, "--json").code == 0
    assert run("report", old).code == 0
    assert "PyTorch to ONNX" in (old / "report.html").read_text(encoding="utf-8")


def test_its_export_goes_on_from_it(run: Run, old: Path, again: list[object]) -> None:
    done = run(*again, "-o", old, "--json")
    assert done.code == 0, done.err
    assert all(row["reused"] for row in done.json["artifacts"])
    assert json.loads((old / "manifest.json").read_text(encoding="utf-8"))["schema"] == 2


def test_a_manifest_that_is_none_is_refused_as_one(run: Run, old: Path) -> None:
    (old / "manifest.json").write_text('{"schema": 1, "artifacts": [3]}', encoding="utf-8")
    result = run("verify", old)
    assert result.code == 9
    assert "is not a valid manifest" in result.err

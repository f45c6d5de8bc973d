"""A good export: what it shows, and that what it writes is what is published."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import jsonschema

from tests.cli.conftest import Run


def test_json_is_the_same_for_a_machine(run: Run, again: list[object], bundle: Path) -> None:
    content = run(*again, "-o", bundle, "--json").json
    assert content["bundle"] == str(bundle)
    assert content["verdict"]["state"] == "verified"
    assert content["unproven"] == []
    assert content["parity"]["reference"].startswith("torch float32")
    assert content["least_headroom"]["headroom"] > 2
    for row in content["artifacts"]:
        assert len(row["sha256"]) == 64
        assert row["size_bytes"] == (bundle / row["path"]).stat().st_size
    half = next(row for row in content["artifacts"] if row["path"] == "model.fp16.onnx")
    assert half["precision"] == "fp16"
    assert half["parity"]["metrics"]["images"] == 4


def test_every_file_of_a_bundle_has_the_mode_of_a_new_one(exported: Path, tmp_path: Path) -> None:
    """safetensors writes files that only their owner may read, and a bundle is there to be served."""
    (tmp_path / "new").touch()
    modes = {path.name: path.stat().st_mode for path in exported.iterdir()}
    assert set(modes.values()) == {(tmp_path / "new").stat().st_mode}, modes


def test_the_manifest_of_an_export_is_valid_by_the_published_schema(exported: Path) -> None:
    schema = (resources.files("skdeploy.bundle") / "manifest.schema.json").read_text(encoding="utf-8")
    jsonschema.validate(json.loads((exported / "manifest.json").read_text(encoding="utf-8")), json.loads(schema))


def test_the_manifest_names_no_path_but_that_of_the_weights(
    exported: Path, card: Path, images: Path, weights: Path
) -> None:
    text = (exported / "manifest.json").read_text(encoding="utf-8")
    assert str(weights) in text  # as it was given
    for path in (exported, card, images, Path.cwd()):
        assert str(path) not in text


def test_any_folder_name_is_shown_as_it_is(run: Run, bundle: Path, again: list[object]) -> None:
    folder = bundle.parent / "with [brackets], [/bold], ünïcode und Leerzeichen"
    folder.parent.mkdir()
    bundle.rename(folder)
    result = run(*again, "-o", folder)
    assert result.code == 0
    assert str(folder) in result.out


def test_the_short_names_of_options_are_the_long_ones(run: Run, again: list[object], bundle: Path) -> None:
    arguments = ["--half" if argument == "--fp16" else argument for argument in again]
    content = run(*arguments, "--output", bundle, "--json").json
    assert all(row["reused"] for row in content["artifacts"])

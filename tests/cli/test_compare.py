"""``skdeploy evaluate NEW --against OLD``, and its old name: release to release."""

from __future__ import annotations

import shutil
from pathlib import Path

from skdeploy.bundle.folder import load_bundle
from skdeploy.core.files import write_text
from tests.cli.conftest import Run


def test_the_same_bundle_twice_has_no_difference(run: Run, exported: Path, bundle: Path, evaluation: Path) -> None:
    result = run("evaluate", bundle, "--against", exported, "--data", evaluation, "--max-drop", 10, "--json")
    assert result.code == 0, result.err
    assert "both bundles end in the same file" in result.err
    (pair,) = result.json["pairs"]
    old = run("compare", exported, bundle, "--data", evaluation, "--max-drop", 10, "--json")
    assert (old.code, old.json["pairs"]) == (0, [pair])
    assert "compare" not in {line.split()[0] for line in run("--help").out.splitlines() if line}
    assert (pair["agreement"], pair["drop"], pair["decision"]) == (1, 0, "pass")
    assert pair["logits"]["max_rel_error"] == 0
    assert pair["first"] != pair["second"]  # two bundles of one name are told by their paths
    assert result.json["kind"] == "comparison"


def test_a_worse_release_is_told_and_fails_only_with_a_budget(
    run: Run, exported: Path, bundle: Path, other: Path, evaluation: Path
) -> None:
    told = run("evaluate", other, "--against", exported, "--data", evaluation)
    assert told.code == 0, told.err
    failed = run("evaluate", other, "--against", exported, "--data", evaluation, "--max-drop", 5)
    assert failed.code == 10
    assert (
        run("evaluate", bundle, "--against", other, "--data", evaluation, "--max-drop", 5).code == 0
    )  # the other way it is a gain


def changed(bundle: Path, folder: Path, **model: object) -> Path:
    shutil.copytree(bundle, folder)
    manifest = load_bundle(folder).manifest
    spec = manifest.model.model_copy(update=model)
    write_text(folder / "manifest.json", manifest.model_copy(update={"model": spec}).model_dump_json(by_alias=True))
    return folder


def test_logits_are_not_compared_where_the_networks_see_other_pixels(
    run: Run, exported: Path, bundle: Path, evaluation: Path, tmp_path: Path
) -> None:
    preprocess = load_bundle(exported).manifest.model.preprocess
    brighter = changed(
        exported, tmp_path / "brighter", preprocess=preprocess.model_copy(update={"mean": (0.1, 0.1, 0.1)})
    )
    (pair,) = run("evaluate", brighter, "--against", exported, "--data", evaluation, "--json").json["pairs"]
    assert pair["logits"] is None
    (same,) = run("compare", exported, bundle, "--data", evaluation, "--json").json["pairs"]
    assert same["logits"] is not None

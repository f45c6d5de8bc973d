"""``skdeploy evaluate NEW --against OLD``, and its old name: release to release."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skdeploy.bundle.folder import load_bundle
from skdeploy.core.files import write_text
from tests.cli.evaluation_data import labelled
from tests.conftest import FAST

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def data(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled(exported, tmp_path_factory.mktemp("eval") / "evaluation.npz")


@pytest.fixture(scope="module")
def other(card: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another network of the same card, in FP32."""
    from skdeploy.core.spec import Target
    from skdeploy.line.export import export
    from skdeploy.line.options import ExportOptions

    folder = tmp_path_factory.mktemp("other") / "bundle"
    export(ExportOptions(str(card), output=folder, seed=5, trace=FAST, images=images, target=Target.ONNX))
    return folder


def test_the_same_bundle_twice_has_no_difference(run: Run, exported: Path, bundle: Path, data: Path) -> None:
    result = run("evaluate", bundle, "--against", exported, "--data", data, "--max-drop", 10, "--json")
    assert result.code == 0, result.err
    assert "both bundles end in the same file" in result.err
    (pair,) = result.json["pairs"]
    old = run("compare", exported, bundle, "--data", data, "--max-drop", 10, "--json")
    assert (old.code, old.json["pairs"]) == (0, [pair])
    assert "compare" not in run("--help").out.split()
    assert (pair["agreement"], pair["drop"], pair["decision"]) == (1, 0, "pass")
    assert pair["logits"]["max_rel_error"] == 0
    assert pair["first"] != pair["second"]  # two bundles of one name are told by their paths
    assert result.json["kind"] == "comparison"


def test_a_worse_release_is_told_and_fails_only_with_a_budget(
    run: Run, exported: Path, bundle: Path, other: Path, data: Path
) -> None:
    told = run("evaluate", other, "--against", exported, "--data", data)
    assert told.code == 0, told.err
    assert "only the first" in told.out
    failed = run("evaluate", other, "--against", exported, "--data", data, "--max-drop", 5)
    assert failed.code == 10
    assert "out of its budget" in failed.err
    assert (
        run("evaluate", bundle, "--against", other, "--data", data, "--max-drop", 5).code == 0
    )  # the other way it is a gain


def changed(bundle: Path, folder: Path, **model: object) -> Path:
    shutil.copytree(bundle, folder)
    manifest = load_bundle(folder).manifest
    spec = manifest.model.model_copy(update=model)
    write_text(folder / "manifest.json", manifest.model_copy(update={"model": spec}).model_dump_json(by_alias=True))
    return folder


def test_other_labels_and_other_numbers_of_classes_are_refused(
    run: Run, exported: Path, bundle: Path, data: Path, tmp_path: Path
) -> None:
    cats = changed(exported, tmp_path / "cats", labels=("a", "b", "c", "d", "e"))
    dogs = changed(exported, tmp_path / "dogs", labels=("a", "c", "b", "d", "e"))
    result = run("evaluate", dogs, "--against", cats, "--data", data)
    assert result.code == 2
    assert "class 1 is 'b' and 'c'" in result.err
    assert run("evaluate", dogs, "--data", data, "--against", cats).code == 2
    assert run("evaluate", bundle, "--against", cats, "--data", data, "--json").json["classes"] == list(
        "abcde"
    )  # only one names them
    network = load_bundle(exported).manifest.model.network.model_copy(update={"classes": 6})
    more = changed(exported, tmp_path / "more", network=network)
    result = run("evaluate", more, "--against", exported, "--data", data)
    assert result.code == 2
    assert "has 5 classes and model.fp16.onnx has 6" in result.err


def test_logits_are_not_compared_where_the_networks_see_other_pixels(
    run: Run, exported: Path, bundle: Path, data: Path, tmp_path: Path
) -> None:
    preprocess = load_bundle(exported).manifest.model.preprocess
    brighter = changed(
        exported, tmp_path / "brighter", preprocess=preprocess.model_copy(update={"mean": (0.1, 0.1, 0.1)})
    )
    (pair,) = run("evaluate", brighter, "--against", exported, "--data", data, "--json").json["pairs"]
    assert pair["logits"] is None
    (same,) = run("compare", exported, bundle, "--data", data, "--json").json["pairs"]
    assert same["logits"] is not None


def test_what_is_no_bundle_is_refused(run: Run, exported: Path, data: Path, tmp_path: Path) -> None:
    result = run("evaluate", tmp_path, "--against", exported, "--data", data)
    assert result.code == 2
    assert "is not a bundle" in result.err

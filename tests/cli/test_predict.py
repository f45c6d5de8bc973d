"""``skdeploy predict``: files in, classes and probabilities out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from scipy.special import softmax as reference_softmax

from skdeploy.accuracy.predict import softmax
from skdeploy.bundle.folder import load_bundle
from skdeploy.core.files import write_text
from skdeploy.devices import cuda
from skdeploy.images.dataset import normalise
from tests.cli.conftest import Run
from tests.cli.evaluation_data import colours, with_engine


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Ten images, more than a batch, and no two alike."""
    paths = [tmp_path / f"{n}.png" for n in range(10)]
    for path, image in zip(paths, colours(10), strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_classes_and_probabilities_are_those_of_onnx_runtime(run: Run, exported: Path, files: list[Path]) -> None:
    found = run("predict", exported, *files, "--all", "--json").json
    spec = load_bundle(exported).manifest.model
    feed = normalise(colours(10)[:, 2:34, 2:34], spec.preprocess)
    logits = onnxruntime.InferenceSession(str(exported / "model.onnx")).run(["logits"], {"input": feed})[0]
    expected = reference_softmax(logits.astype(np.float64), axis=1)
    assert [image["image"] for image in found["images"]] == list(map(str, files))
    for image, chances in zip(found["images"], expected, strict=True):
        by_name = {row["artifact"]: row["top"] for row in image["predictions"]}
        assert list(by_name) == ["torch", "model.traced.onnx", "model.onnx", "model.fp16.onnx"]
        top = by_name["model.onnx"]
        assert [guess["number"] for guess in top] == list(np.argsort(-chances, kind="stable"))
        # float32 logits of a batch of 10 and of 8 and 2
        assert [guess["probability"] for guess in top] == pytest.approx(sorted(chances, reverse=True), abs=1e-6)
        assert [g["probability"] for g in by_name["torch"]] == pytest.approx(sorted(chances, reverse=True), abs=1e-5)


def test_without_all_it_is_the_last_graph_and_labels_are_the_cards(
    run: Run, exported: Path, files: list[Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "labelled"))
    manifest = load_bundle(folder).manifest
    spec = manifest.model.model_copy(update={"labels": ("[red]cat[/red]", "dog", "cow", "ant", "bee")})
    write_text(folder / "manifest.json", manifest.model_copy(update={"model": spec}).model_dump_json(by_alias=True))
    result = run("predict", folder, files[0])
    assert result.code == 0, result.err
    assert "model.fp16.onnx on onnxruntime" in result.out
    assert "torch" not in result.out
    assert "[red]cat[/red]" in result.out  # a label is no markup
    assert "%  dog" in result.out
    plain = run("predict", exported, files[0], "--json").json
    assert {guess["label"] for guess in plain["images"][0]["predictions"][0]["top"]} == {"0", "1", "2", "3", "4"}


@pytest.mark.skipif(bool(cuda.devices()), reason="an engine that is no plan fails otherwise where there is a GPU")
def test_an_engine_that_does_not_run_here_is_said(run: Run, exported: Path, files: list[Path], tmp_path: Path) -> None:
    folder = with_engine(exported, tmp_path / "engine")
    result = run("predict", folder, files[0], "--all")
    assert result.code == 0, result.err
    assert "not run here: engines/tensorrt-fp16.engine: " in result.out
    assert "no GPU to run an engine on" in result.out


def test_softmax_of_huge_logits_is_finite() -> None:
    found = softmax(np.array([[1e4, 1e4 - 1, -1e4], [0, 0, 0]], np.float32))
    assert found.sum(axis=1) == pytest.approx([1, 1])
    assert found[0] == pytest.approx(reference_softmax([0, -1, -2e4]))


def test_a_folder_stands_for_the_images_in_it_and_one_without_any_is_refused(
    run: Run, exported: Path, files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("not an image", encoding="utf-8")
    found = run("predict", exported, tmp_path, "--json").json
    assert [image["image"] for image in found["images"]] == sorted(map(str, files))
    (tmp_path / "empty").mkdir()
    refused = run("predict", exported, tmp_path / "empty")
    assert refused.code == 2
    assert "no images in the folder" in refused.err

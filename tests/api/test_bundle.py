"""A bundle in Python: numpy arrays in and out, and the same answers as the command line's."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import skdeploy
from skdeploy.api.bundle import Bundle
from skdeploy.core.errors import IntegrityError, UsageError


@pytest.fixture
def files(photographs: Path) -> list[Path]:
    return sorted(photographs.iterdir())


def test_logits_in_three_lines_are_those_of_onnx_runtime_alone(exported: Bundle, files: list[Path]) -> None:
    with exported.session("model.onnx") as run:
        logits = run(exported.preprocess(files))

    # The card's preprocessing, written out: shorter side to `resize`, centre crop, (x / 255 - mean) / std.
    spec = exported.spec
    bare = onnxruntime.InferenceSession(exported.folder / "model.onnx", providers=["CPUExecutionProvider"])
    rows = []
    for file in files:
        image = Image.open(file).convert("RGB")
        scale = spec.preprocess.resize / min(image.size)
        image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (round((image.width - spec.input.width) / 2), round((image.height - spec.input.height) / 2))
        pixels = np.asarray(image)[top : top + spec.input.height, left : left + spec.input.width] / 255
        rows.append(((pixels - spec.preprocess.mean) / spec.preprocess.std).transpose(2, 0, 1))
    (expected,) = bare.run(["logits"], {bare.get_inputs()[0].name: np.stack(rows).astype(np.float32)})
    np.testing.assert_allclose(logits, expected, atol=1e-5)  # float32 against float64 in the normalisation


def test_one_image_many_and_raw_pixels_are_taken(exported: Bundle, files: list[Path]) -> None:
    one = exported.preprocess(files[0])
    many = exported.preprocess([str(file) for file in files])
    raw = exported.preprocess(np.asarray(Image.open(files[0])))
    assert many.shape == (4, 3, 32, 32)
    np.testing.assert_array_equal(one[0], many[0])
    np.testing.assert_array_equal(raw, one)


@pytest.mark.parametrize("images", [[], 3, np.zeros((2, 2), np.uint8), np.zeros((8, 8, 3), np.float32), "missing.png"])
def test_what_is_no_image_is_told(exported: Bundle, images: object) -> None:
    with pytest.raises(UsageError):
        exported.preprocess(images)  # type: ignore[arg-type]  # what a user may pass all the same


def test_predictions_and_evaluation_agree_with_the_logits(exported: Bundle, files: list[Path], tmp_path: Path) -> None:
    with exported.session() as run:
        best = run(exported.preprocess(files)).argmax(1)
    assert [found.predictions[0].top[0].number for found in exported.predict(files)] == best.tolist()
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    np.savez(tmp_path / "eval.npz", images=pixels, labels=best)
    bundle = skdeploy.load_bundle(shutil.copytree(exported.folder, tmp_path / "copy"))
    evaluation = bundle.evaluate(tmp_path / "eval.npz", max_drop=50.0, progress=False, fresh=True)
    assert evaluation.accuracies[-1].top1.correct == 4
    assert bundle.verdict.state == "accuracy undecided"  # four images tell nothing


def test_verify_bench_plan_and_report_answer(exported: Bundle, photographs: Path, tmp_path: Path) -> None:
    verification = exported.verify(photographs, progress=False)
    verification.check()
    assert verification.verdict.state == "verified"
    measured = exported.bench(batches=[2], seconds=0.05, progress=False).measured
    assert measured[-1].latency.batches[0].batch == 2
    assert exported.plan("orin-nano").devices[0].name == "orin-nano"
    page = exported.report(tmp_path / "page.html")
    assert exported.verdict.text.split(";")[0] in page.read_text(encoding="utf-8")


def test_an_option_that_a_verb_does_not_have_is_named(exported: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="max_dorp"):
        exported.evaluate(tmp_path, max_dorp=1)
    with pytest.raises(UsageError, match="give one of them"):
        exported.session("model.onnx", backend="torch")


def test_a_notebook_sees_the_verdict_first(exported: Bundle) -> None:
    shown = exported._repr_html_()
    assert shown.startswith(f"<p><b>{exported.verdict.text}")
    assert "<td>model.fp16.onnx</td>" in shown
    assert exported.verdict.text in repr(exported)


def test_an_altered_graph_does_not_open(exported: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported.folder, tmp_path / "copy"))
    with (folder / "model.onnx").open("ab") as graph:
        graph.write(b"x")
    with pytest.raises(IntegrityError):
        skdeploy.load_bundle(folder).session("model.onnx")
    with pytest.raises(UsageError, match="not a bundle"):
        skdeploy.load_bundle(str(tmp_path))

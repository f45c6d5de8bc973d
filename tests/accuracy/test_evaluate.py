"""Evaluations of real bundles: predictions against ONNX Runtime run by hand, the cache, and what cannot be evaluated."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from skdeploy.accuracy import evaluate as module
from skdeploy.accuracy.evaluate import EvaluationOptions, evaluate, labelled_images, require_pair
from skdeploy.accuracy.gate import NotEvaluated
from skdeploy.accuracy.predictions import Predictions
from skdeploy.accuracy.streaming import Reader, predict_all
from skdeploy.bundle.folder import load_bundle
from skdeploy.bundle.runners import last_graph
from skdeploy.core import cpu
from skdeploy.core.errors import DependencyError, IntegrityError, ParityError, UsageError
from skdeploy.core.progress import Silent
from skdeploy.images.dataset import Dataset, open_dataset
from skdeploy.line.export import export
from skdeploy.line.options import ExportOptions
from tests.accuracy.figures import IMAGES, figures, folder_of_images
from tests.conftest import FAST
from tests.tiny import CARD

pytestmark = pytest.mark.usefixtures("cache")


def test_accuracy_is_that_of_onnx_runtime_alone(
    bundles: tuple[Path, Path], data: Path, logits: NDArray[np.float32]
) -> None:
    found = evaluate(bundles[0], EvaluationOptions(data))
    fp32, fp16 = found.accuracies
    assert (fp32.artifact, fp16.artifact) == ("model.onnx", "model.fp16.onnx")
    assert fp32.top1.correct == IMAGES - 6
    assert fp32.top5 is None  # of five classes
    labels = np.load(data)["labels"]
    for row in range(5):
        expected = np.bincount(logits.argmax(1)[labels == row], minlength=5)
        assert fp32.confusion[row] == tuple(expected)
    assert found.missing_classes == tuple(str(n) for n in range(5) if n not in labels)
    assert found.pairs[0].agreement > 0.9  # FP16 flips what is near a tie, and little else
    assert found.pairs[0].first == "model.onnx on onnxruntime"


@pytest.mark.parametrize("batch", [1, 7, 61, 100])
def test_any_batch_gives_the_same_figures_and_no_image_is_lost(
    bundles: tuple[Path, Path], data: Path, batch: int
) -> None:
    expected = figures(evaluate(bundles[0], EvaluationOptions(data)))
    found = figures(evaluate(bundles[0], EvaluationOptions(data, batch=batch)))
    assert found["accuracies"] == expected["accuracies"]
    assert found["images"] == IMAGES


def test_a_graph_of_fixed_batch_that_takes_raw_pixels_sees_the_same_and_its_fill_is_not_counted(
    bundles: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.npz"
    np.savez(few, images=np.load(data)["images"][:4])
    options = ExportOptions(
        str(CARD),
        output=tmp_path / "fixed",
        seed=1,
        images=few,
        target="onnx",
        trace=FAST.model_copy(update={"batch": 3, "embed_preprocess": True}),
    )
    export(options)
    found = evaluate(tmp_path / "fixed", EvaluationOptions(data, against=str(bundles[0])))
    assert found.images == IMAGES
    assert found.accuracies[1].top1.correct == IMAGES - 6  # of FP32


def test_torch_can_be_the_reference_and_is_the_same_network(bundles: tuple[Path, Path], data: Path) -> None:
    found = evaluate(bundles[0], EvaluationOptions(data, artifacts=("model.onnx",), against="torch"))
    assert found.pairs[0].first == "torch"
    assert found.pairs[0].agreement == 1
    assert found.pairs[0].logits is not None
    assert found.pairs[0].logits.max_rel_error < 1e-4  # float32, summed in another order


def test_another_network_fails_the_gate_and_the_same_one_passes(
    bundles: tuple[Path, Path],
    data: Path,
    pixels: NDArray[np.uint8],
    logits: NDArray[np.float32],
    tmp_path: Path,
) -> None:
    good, other = bundles
    bad = evaluate(other, EvaluationOptions(data, max_drop=5, against=str(good)))
    assert bad.verdict == "fail"
    assert bad.pairs[0].first == "seed1/model.fp16.onnx on onnxruntime"
    copy = shutil.copytree(good, tmp_path / "copy")
    # All are right, and the rare classes come more often: else naming the frequent class is as good, and the gate undecided.
    labels = logits.argmax(1)
    rows = np.concatenate([np.arange(IMAGES), np.repeat(np.flatnonzero(labels != np.bincount(labels).argmax()), 10)])
    np.savez(tmp_path / "right.npz", images=pixels[rows], labels=labels[rows])
    same = evaluate(copy, EvaluationOptions(tmp_path / "right.npz", max_drop=10, against=str(good)))
    assert same.verdict == "pass"
    assert same.pairs[0].agreement == 1


def test_the_reference_comes_once_though_it_is_asked_for_twice(bundles: tuple[Path, Path], data: Path) -> None:
    found = evaluate(bundles[0], EvaluationOptions(data, artifacts=("model.onnx", "model.fp16.onnx", "model.onnx")))
    assert [a.artifact for a in found.accuracies] == ["model.onnx", "model.fp16.onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": -0.1}, "--max-drop -0.1"),
        ({"max_drop": float("nan")}, "--max-drop nan"),
        ({"confidence": 50}, "--confidence 50"),
        ({"confidence": 100}, "--confidence 100"),
        ({"batch": 0}, "--batch 0"),
        ({"num_images": 0}, "0 images"),
        ({"artifacts": ("nothing.onnx",)}, r"nothing to run named 'nothing.onnx'"),
        ({"artifacts": ("parity.json",)}, r"nothing to run named 'parity.json'"),
        ({"against": "nowhere"}, "neither an artifact"),
        ({"require_engine": True}, "holds no engine"),
        ({"artifacts": ("model.onnx",), "max_drop": 1}, r"needs two artifacts, but model\.onnx is the only one"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    bundles: tuple[Path, Path], data: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(bundles[0], EvaluationOptions(data, **options))


def test_a_budget_for_an_engine_that_cannot_run_here_is_a_missing_dependency(bundles: tuple[Path, Path]) -> None:
    """Of accuracy and of quality on pairs: nothing is wrong with what was typed."""
    alone = last_graph(load_bundle(bundles[0]))
    absent = NotEvaluated(artifact="engines/one.engine", backend="tensorrt", reason="no GPU")
    require_pair(None, [alone], [absent])
    with pytest.raises(DependencyError, match=r"none runs here: engines/one\.engine: no GPU"):
        require_pair(1.0, [alone], [absent])


def test_fewer_images_are_spread_over_all(bundles: tuple[Path, Path], data: Path) -> None:
    spec = load_bundle(bundles[0]).manifest.model
    some = labelled_images(data, spec, 7)
    assert some.numbers is not None
    assert some.labels is not None
    assert len(some) == 7
    assert some.numbers.tolist() == sorted(some.numbers.tolist())
    whole = np.bincount(np.load(data)["labels"])
    shares = 7 * whole / whole.sum()  # counting off the sorted classes is at most one image from each class's share
    assert np.abs(np.bincount(some.labels, minlength=len(whole)) - shares).max() <= 1
    assert evaluate(bundles[0], EvaluationOptions(data, num_images=7)).images == 7


def test_fewer_images_are_spread_over_classes_that_take_turns_in_the_file(
    bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    spec = load_bundle(bundles[0]).manifest.model
    side, channels, classes = spec.input.height, spec.input.channels, spec.network.classes or 0
    count = 4 * classes
    pixels = np.zeros((count, side, side, channels), np.uint8)
    np.savez(tmp_path / "turns.npz", images=pixels, labels=np.arange(count) % classes)
    for number in (classes, 2 * classes):
        some = labelled_images(tmp_path / "turns.npz", spec, number)
        assert some.labels is not None
        assert np.bincount(some.labels, minlength=classes).tolist() == [number // classes] * classes


def test_files_give_what_arrays_give_and_a_few_unreadable_ones_are_left_out_by_name(
    bundles: tuple[Path, Path], data: Path, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    labels = np.load(data)["labels"]
    folder = folder_of_images(tmp_path / "images", np.concatenate([pixels, pixels]), [*labels, *labels])
    whole = evaluate(bundles[0], EvaluationOptions(folder))
    once = evaluate(bundles[0], EvaluationOptions(data))
    assert whole.accuracies[0].top1.correct == 2 * once.accuracies[0].top1.correct
    victims = sorted(folder.rglob("*.png"))
    victims[30].write_bytes(victims[30].read_bytes()[:100])
    found = evaluate(bundles[0], EvaluationOptions(folder))
    assert found.images == 121
    assert [image.name for image in found.unreadable] == [str(victims[30].relative_to(folder))]
    victims[40].write_text("no image")
    with pytest.raises(UsageError, match=r"2 of the first \d+ images .* cannot be read; of all 122, at most 1 may be"):
        evaluate(bundles[0], EvaluationOptions(folder))


def test_labels_of_another_map_and_out_of_range_are_refused(
    bundles: tuple[Path, Path], pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    np.savez(tmp_path / "high.npz", images=pixels, labels=np.full(IMAGES, 5))
    with pytest.raises(UsageError, match="has label 5, but tiny has 5 classes"):
        evaluate(bundles[0], EvaluationOptions(tmp_path / "high.npz"))
    np.savez(tmp_path / "none.npz", images=pixels)
    with pytest.raises(UsageError, match="accuracy needs labels"):
        evaluate(bundles[0], EvaluationOptions(tmp_path / "none.npz"))


def test_an_altered_artifact_is_refused(bundles: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundles[0], tmp_path / "copy"))
    with (copy / "model.fp16.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(IntegrityError, match=r"model\.fp16\.onnx is not the file"):
        evaluate(copy, EvaluationOptions(data))


class Broken:
    """A session whose third batch holds a NaN."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.inputs, self.calls = inner, inner.inputs, 0

    def run(self, feeds: Any) -> dict[str, NDArray[np.float32]]:
        outputs: dict[str, NDArray[np.float32]] = self.inner.run(feeds)
        self.calls += 1
        if self.calls == 3:
            outputs["logits"][1, 0] = np.nan
        return outputs


def test_logits_that_are_not_finite_are_no_prediction(bundles: tuple[Path, Path], data: Path) -> None:
    runner = module.last_graph(load_bundle(bundles[0]))
    dataset = open_dataset(data)
    predictions = Predictions.none_yet(IMAGES, runner.spec)
    saved: list[int] = []
    session: Any = Broken(runner.open())
    with pytest.raises(ParityError, match=r"from images\[16\] on: 1 logits are NaN"):
        predict_all([(runner, session)], dataset, 8, [predictions], lambda n: saved.append(predictions.done), Silent())
    assert saved == [16]


def test_the_next_batch_is_read_while_this_one_is_computed_and_no_more_than_that(
    bundles: tuple[Path, Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = Dataset.crop

    def crop(self: Dataset, index: int, spec: Any) -> Any:
        read.append(index)
        return real(self, index, spec)

    monkeypatch.setattr(cpu, "cores", lambda: 2)  # on one, an array is read by turns
    monkeypatch.setattr(Dataset, "crop", crop)
    runner = module.last_graph(load_bundle(bundles[0]))
    with runner.open() as session:
        batches: Iterator[Any] = Reader([(runner, session)], open_dataset(data), 8).batches(0)
        next(batches)
        deadline = time.monotonic() + 10
        while len(read) < 16 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert read == list(range(16))
        assert sum(len(rows) for batch in batches for rows in batch.rows.values()) == IMAGES - 8

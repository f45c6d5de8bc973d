"""Predictions are made once for each artifact, kept for this user, and checked before they are used again."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from skdeploy.accuracy.evaluate import EvaluationOptions, evaluate
from skdeploy.accuracy.kept import Columns, Kept
from skdeploy.accuracy.reuse import CHECKED
from skdeploy.backends.base import Array
from skdeploy.bundle.runners import Runner
from skdeploy.images.audit_report import Unreadable
from tests.accuracy.figures import IMAGES, figures, folder_of_images
from tests.notes import Notes

pytestmark = pytest.mark.usefixtures("cache")


def stop_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends with an error after so many batches of two artifacts, each of which is saved."""
    real, left = Kept.save, [2 * batches]

    def save(self: Kept, columns: Columns, done: int, unreadable: Mapping[int, Unreadable]) -> bool:
        saved = real(self, columns, done, unreadable)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return saved

    monkeypatch.setattr("skdeploy.accuracy.streaming.SAVE_SECONDS", 0.0)
    monkeypatch.setattr(Kept, "save", save)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many images each artifact has been run on."""
    counts: dict[str, int] = {}
    real = Runner.open

    class Counted:
        def __init__(self, session: Any, name: str) -> None:
            self.session, self.name = session, name

        def __enter__(self) -> Counted:
            self.session.__enter__()
            return self

        def __exit__(self, *error: object) -> Any:
            return self.session.__exit__(*error)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.session, name)

        def run(self, feeds: Mapping[str, Array]) -> Any:
            counts[self.name] = counts.get(self.name, 0) + len(next(iter(feeds.values())))
            return self.session.run(feeds)

    monkeypatch.setattr(Runner, "open", lambda self: Counted(real(self), self.name))
    return counts


def test_fp32_is_predicted_once_for_all_that_it_is_compared_with(
    bundles: tuple[Path, Path], data: Path, tmp_path: Path, ran: dict[str, int]
) -> None:
    """Counted, not timed: a second configuration of the same network runs FP32 on the checked images only."""
    evaluate(bundles[0], EvaluationOptions(data))
    assert ran == {"model.onnx": IMAGES, "model.fp16.onnx": IMAGES}
    copy = Path(shutil.copytree(bundles[0], tmp_path / "copy"))
    ran.clear()
    tell = Notes()
    pair = evaluate(copy, EvaluationOptions(data, artifacts=("model.fp16.onnx",), against="torch"), tell)
    assert ran == {"torch": IMAGES, "model.fp16.onnx": CHECKED}
    assert "predictions of model.fp16.onnx are reused" in tell.notes[-1]
    ran.clear()
    found = evaluate(copy, EvaluationOptions(data, artifacts=("model.onnx",), against="torch"))
    assert ran == {"torch": CHECKED, "model.onnx": CHECKED}
    assert found.reused == IMAGES
    fresh = EvaluationOptions(data, artifacts=("model.fp16.onnx",), against="torch", fresh=True)
    assert figures(evaluate(copy, fresh)) == figures(pair)  # of kept logits as of new ones, to the last bit


def test_an_interrupted_run_goes_on_and_ends_the_same(bundles: tuple[Path, Path], data: Path, cache: Path) -> None:
    expected = figures(evaluate(bundles[0], EvaluationOptions(data, fresh=True)))
    shutil.rmtree(cache)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            evaluate(bundles[0], EvaluationOptions(data))
    tell = Notes()
    found = evaluate(bundles[0], EvaluationOptions(data), tell)
    assert found.reused == 24
    assert figures(found) == expected
    assert "interrupted after 24 of 61" in tell.notes[0]
    again = evaluate(bundles[0], EvaluationOptions(data), tell)
    assert again.reused == IMAGES
    assert "predictions of an earlier run are reused" in tell.notes[-1]
    assert figures(again) == expected
    assert evaluate(bundles[0], EvaluationOptions(data, fresh=True)).reused == 0


def test_other_images_another_batch_or_another_artifact_are_not_answered_from_the_cache(
    bundles: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    with np.load(data) as content:
        images, labels = content["images"], content["labels"]
    evaluate(bundles[0], EvaluationOptions(data))
    changed = images.copy()
    changed[5, 20, 20, 0] ^= 1
    np.savez(tmp_path / "changed.npz", images=changed, labels=labels)
    np.savez(tmp_path / "relabelled.npz", images=images, labels=(labels + 1) % 5)
    assert evaluate(bundles[0], EvaluationOptions(tmp_path / "changed.npz")).reused == 0
    assert evaluate(bundles[0], EvaluationOptions(data, batch=3)).reused == 0
    assert evaluate(bundles[0], EvaluationOptions(data, against="torch")).reused == 0
    assert evaluate(bundles[1], EvaluationOptions(data)).reused == 0
    relabelled = evaluate(bundles[0], EvaluationOptions(tmp_path / "relabelled.npz"))
    assert relabelled.reused == IMAGES  # predictions need no labels
    assert relabelled.accuracies[0].top1.correct <= 6


def npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


DAMAGES = ("truncated", "empty", "text", "bytes", "header", "other arrays", "other shape", "other type", "rows")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_said_and_replaced(bundles: tuple[Path, Path], data: Path, cache: Path, damage: str) -> None:
    expected = figures(evaluate(bundles[0], EvaluationOptions(data)))
    nothing = np.frombuffer(b"[]", np.uint8)
    for file in cache.iterdir():
        content = file.read_bytes()
        if damage == "other arrays":
            np.savez(file, unrelated=np.zeros(3))
        elif damage in (
            "bytes",
            "header",
        ):  # of a member: NumPy gives bytes for one, and raises a TokenError for the other
            member = {"bytes": b"[]", "header": npy(np.zeros(3)).replace(b"}", b"{")}[damage]
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("logits.npy", npy(np.zeros((IMAGES, 5), np.float32)) if damage == "bytes" else member)
                archive.writestr("unreadable.npy", member if damage == "bytes" else npy(nothing))
        elif damage == "other shape":
            np.savez(file, logits=np.zeros((IMAGES + 9, 5), np.float32), unreadable=nothing)
        elif damage == "other type":
            np.savez(file, logits=np.zeros((IMAGES, 5)), unreadable=nothing)
        elif damage == "rows":
            np.savez(file, logits=np.zeros((7, 5), np.float32), unreadable=nothing)
        else:
            file.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"predictions"}[damage])
    tell = Notes()
    found = evaluate(bundles[0], EvaluationOptions(data), tell)
    assert "cannot use the predictions of an earlier run" in tell.notes[0]
    assert found.reused == 0
    assert figures(found) == expected
    assert evaluate(bundles[0], EvaluationOptions(data)).reused == IMAGES


def entries(cache: Path) -> Iterator[tuple[Path, dict[str, NDArray[Any]]]]:
    for file in cache.iterdir():
        with np.load(file) as content:
            yield file, dict(content)


def test_predictions_that_somebody_made_up_are_found_by_a_sample(
    bundles: tuple[Path, Path], data: Path, cache: Path
) -> None:
    """All but CHECKED - 1 images are altered, so whatever is drawn holds one of them."""
    expected = figures(evaluate(bundles[0], EvaluationOptions(data)))
    for file, arrays in list(entries(cache)):
        arrays["logits"][CHECKED - 1 :] = np.roll(arrays["logits"][CHECKED - 1 :], 1, axis=1)
        np.savez(file, **arrays)
    tell = Notes()
    found = evaluate(bundles[0], EvaluationOptions(data), tell)
    assert "model.onnx gives other logits for images[" in tell.notes[0]
    assert found.reused == 0
    assert figures(found) == expected


def test_a_folder_that_others_may_write_to_is_not_used(
    bundles: tuple[Path, Path], data: Path, cache: Path, ran: dict[str, int]
) -> None:
    evaluate(bundles[0], EvaluationOptions(data))
    assert cache.stat().st_mode & 0o777 == 0o700
    cache.chmod(0o777)
    ran.clear()
    tell = Notes()
    evaluate(bundles[0], EvaluationOptions(data), tell)
    assert ran == {"model.onnx": IMAGES, "model.fp16.onnx": IMAGES}
    assert "other users may write to" in tell.notes[-1]


def test_entries_of_earlier_versions_are_not_read_and_go_away(
    bundles: tuple[Path, Path], data: Path, cache: Path
) -> None:
    old = cache.with_name("evaluations") / "key.npz"
    old.parent.mkdir(parents=True)
    np.savez(old, top=np.zeros((2, 61, 5), np.int16), sums=np.zeros((1, 61, 6)), unreadable=np.zeros(2, np.uint8))
    assert evaluate(bundles[0], EvaluationOptions(data)).reused == 0
    assert not old.exists()


def test_a_cache_that_cannot_be_written_is_said_and_the_result_is_the_same(
    bundles: tuple[Path, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = figures(evaluate(bundles[0], EvaluationOptions(data)))
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    tell = Notes()
    assert figures(evaluate(bundles[0], EvaluationOptions(data), tell)) == expected
    assert len(tell.notes) == 1
    assert "predictions cannot be saved" in tell.notes[0]


def test_unreadable_images_of_an_interrupted_run_are_still_known(
    bundles: tuple[Path, Path], data: Path, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    labels = np.load(data)["labels"]
    folder = folder_of_images(tmp_path / "images", np.concatenate([pixels, pixels]), [*labels, *labels])
    first = min(folder.rglob("*.png"))
    first.write_text("no image")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            evaluate(bundles[0], EvaluationOptions(folder))
    found = evaluate(bundles[0], EvaluationOptions(folder))
    assert found.reused == 24
    assert [image.name for image in found.unreadable] == [str(first.relative_to(folder))]

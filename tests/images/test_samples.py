"""Samples of networks that do not take images: what is read, and what is refused and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from skdeploy.core.architecture import GraphSpec
from skdeploy.core.errors import UsageError
from skdeploy.core.interface import ArrayInput, DynamicSize
from skdeploy.core.spec import ModelSpec, Source
from skdeploy.images.audit import Audit
from skdeploy.images.dataset import Dataset, default_dataset, open_dataset
from skdeploy.images.feeds import batches_of
from skdeploy.images.reading import read_crops
from skdeploy.images.selection import random_images, select


def spec_of(*inputs: ArrayInput, **sizes: DynamicSize) -> ModelSpec:
    return ModelSpec(
        schema_version=1,
        name="net",
        summary="arrays in",
        network=GraphSpec(classes=3),
        inputs=inputs,
        sizes=sizes,
        tolerance={},
        source=Source(paper="", url="", licence=""),
    )


PAIR = spec_of(ArrayInput(name="left", shape=(2, 3)), ArrayInput(name="right", shape=(4,), dtype="int64"))
SPEAKER = spec_of(ArrayInput(name="features", shape=(5, "frames")), frames=DynamicSize(usual=6, multiple=2))
BANDS = spec_of(ArrayInput(name="planes", shape=(18, 4, 7), channels_last=True))


def numbers(*shape: int, dtype: str = "float32") -> NDArray[Any]:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def feeds(dataset: Dataset, spec: ModelSpec, batch: int = 2) -> list[tuple[dict[str, NDArray[Any]], int]]:
    return list(batches_of(dataset.crops(spec), spec, spec.taken, batch))


def test_a_folder_of_npz_streams_as_feeds_of_each_input(tmp_path: Path) -> None:
    for index in range(3):
        np.savez(tmp_path / f"{index}.npz", left=numbers(2, 3) + index, right=numbers(4, dtype="int64") - index)
    (first, two), (last, one) = feeds(open_dataset(tmp_path, spec=PAIR), PAIR)
    assert (two, one) == (2, 1)
    assert {name: (array.dtype, array.shape) for name, array in first.items()} == {
        "left": (np.float32, (2, 2, 3)),
        "right": (np.int64, (2, 4)),
    }
    np.testing.assert_array_equal(last["left"], numbers(2, 3)[None] + 2)
    np.testing.assert_array_equal(last["right"], numbers(4)[None] - 2)


def test_one_npz_holds_all_samples_with_their_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", left=numbers(5, 2, 3), right=numbers(5, 4, dtype="int64"), labels=np.arange(5) % 3)
    dataset = open_dataset(tmp_path / "s.npz", spec=PAIR)
    assert len(dataset) == 5
    assert dataset.labels is not None
    chosen = select(dataset, 3, seed=0)
    assert chosen.labels is not None
    assert sorted(chosen.labels.tolist()) == [0, 1, 2]  # balanced, as for images
    ((fed, count),) = feeds(chosen, PAIR, batch=8)
    assert count == 3
    for row, number in zip(fed["left"], chosen.numbers if chosen.numbers is not None else [], strict=True):
        np.testing.assert_array_equal(row, numbers(5, 2, 3)[number])
    assert chosen.name_of(0) == f"samples[{chosen.numbers[0]}]" if chosen.numbers is not None else False


def test_class_folders_label_samples(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", numbers(5, 6))
    dataset = open_dataset(tmp_path, spec=SPEAKER)
    assert (dataset.classes, dataset.labels is not None and dataset.labels.tolist()) == (("cat", "dog"), [0, 1])


def test_longer_samples_are_cut_around_their_centre(tmp_path: Path) -> None:
    np.save(tmp_path / "long.npy", numbers(5, 11))
    (fed, _), *_ = feeds(open_dataset(tmp_path, spec=SPEAKER), SPEAKER)
    np.testing.assert_array_equal(fed["features"][0], numbers(5, 11)[:, 2:8])


def test_planes_with_channels_last_are_turned(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", numbers(4, 7, 18))
    (fed, _), *_ = feeds(open_dataset(tmp_path, spec=BANDS), BANDS)
    np.testing.assert_array_equal(fed["planes"][0, 3], numbers(4, 7, 18)[:, :, 3])


def test_float64_is_rounded_and_integers_must_fit(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", left=numbers(2, 3, dtype="float64") / 3, right=numbers(4, dtype="int16"))
    (fed, _), *_ = feeds(open_dataset(tmp_path, spec=PAIR), PAIR)
    np.testing.assert_array_equal(fed["left"][0], (numbers(2, 3, dtype="float64") / 3).astype(np.float32))
    assert fed["right"].dtype == np.int64


def save(**arrays: NDArray[Any]) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)


GOOD = {"left": numbers(2, 3), "right": numbers(4, dtype="int64")}
NAN = numbers(2, 3)
NAN[1, 1] = np.nan
WRONG: dict[str, tuple[dict[str, NDArray[Any]], str]] = {
    "missing": ({"left": GOOD["left"]}, "no array named 'right'; net takes left, right"),
    "rank": (GOOD | {"left": numbers(3)}, r"left has shape \(3,\), of rank 1; a sample is \(2, 3\)"),
    "stack": (GOOD | {"left": numbers(4, 2, 3)}, "a stack of 4 samples; in a folder each file is one sample"),
    "dtype": (GOOD | {"left": numbers(2, 3, dtype="uint8")}, "left is uint8, but float32 is needed"),
    "floats for integers": (GOOD | {"right": numbers(4)}, "right is float32, but int64 is needed"),
    "size": (GOOD | {"left": numbers(2, 4)}, r"left has shape \(2, 4\), but net takes \(2, 3\)"),
    "nan": (GOOD | {"left": NAN}, "1 of the 6 values of left are NaN or infinite"),
    "too large": (GOOD | {"left": np.full((2, 3), 1e39)}, "6 of the 6 values of left are NaN or infinite"),
    "objects": (GOOD | {"left": np.array([[None] * 3] * 2)}, "it holds Python objects, which run code"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_sample_is_refused_and_named(case: str, tmp_path: Path) -> None:
    arrays, message = WRONG[case]
    save(**arrays)(tmp_path / "bad.npz")
    with pytest.raises(UsageError, match=message) as raised:
        feeds(open_dataset(tmp_path, spec=PAIR), PAIR)
    assert "bad.npz" in raised.value.message
    assert raised.value.advice


def test_different_counts_and_shorter_samples_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", left=numbers(5, 2, 3), right=numbers(4, 4, dtype="int64"))
    with pytest.raises(UsageError, match="holds 5 of left, 4 of right"):
        open_dataset(tmp_path / "s.npz", spec=PAIR)
    np.save(tmp_path / "short.npy", numbers(5, 4))
    with pytest.raises(UsageError, match=r"features has shape \(5, 4\), but net takes \(5, frames\) with frames 6"):
        open_dataset(tmp_path / "short.npy", spec=SPEAKER)


def test_channels_last_that_the_card_does_not_say_are_recognised(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", numbers(4, 7, 18))
    card = spec_of(ArrayInput(name="planes", shape=(18, 4, 7)))
    with pytest.raises(UsageError, match="has shape") as raised:
        open_dataset(tmp_path / "a.npy", spec=card)
    assert "set channels_last = true for planes" in raised.value.advice


def test_images_and_one_array_for_two_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(UsageError, match=r"a\.png is not an \.npz") as raised:
        open_dataset(tmp_path / "a.png", spec=PAIR)
    assert "left: float32[2, 3]" in raised.value.advice
    np.save(tmp_path / "a.npy", numbers(2, 3))
    with pytest.raises(UsageError, match="is one array, but net takes left, right"):
        open_dataset(tmp_path / "a.npy", spec=PAIR)


def test_without_samples_there_is_noise_that_says_so() -> None:
    dataset = default_dataset(PAIR, 64)
    assert (dataset.random, dataset.chosen, dataset.name) == (True, "random", "random noise, seed 0")
    assert random_images(PAIR, 4, 1).digest == random_images(PAIR, 4, 1).digest != random_images(PAIR, 4, 2).digest
    ((fed, count),) = feeds(random_images(PAIR, 200, 0), PAIR, batch=200)
    assert count == 200
    # 1,200 normal numbers: their mean is within 5 standard errors, 1 / sqrt(1200), of 0.
    assert abs(float(fed["left"].mean())) < 5 / np.sqrt(1200)


def test_images_of_other_numbers_of_channels_are_resized_channel_by_channel(tmp_path: Path) -> None:
    from PIL import Image

    from skdeploy.core.spec import InputSpec, Preprocess

    card = PAIR.model_copy(
        update={
            "inputs": (),
            "input": InputSpec(channels=5, height=8, width=10),
            "preprocess": Preprocess(resize=10, mean=(0.5,) * 5, std=(0.25,) * 5),
        }
    )
    planes = np.random.default_rng(0).integers(0, 256, (20, 30, 5)).astype(np.uint8)
    np.save(tmp_path / "a.npy", planes)
    (crop,) = open_dataset(tmp_path, spec=card).crops(card)
    for channel in range(5):
        whole = Image.fromarray(planes[..., channel]).resize((15, 10), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(crop[..., channel], np.asarray(whole.crop((2, 1, 12, 9))))
    np.save(tmp_path / "a.npy", planes.transpose(2, 0, 1))
    with pytest.raises(UsageError, match=r"holds uint8 of shape \(5, 20, 30\)") as raised:
        list(open_dataset(tmp_path, spec=card).crops(card))
    assert "put the channels last" in raised.value.advice


def test_equal_and_constant_samples_are_named_in_the_audit_of_a_calibration(tmp_path: Path) -> None:
    for index in range(3):
        np.savez(tmp_path / f"{index}.npz", left=numbers(2, 3) + index % 2, right=numbers(4, dtype="int64"))
    np.savez(tmp_path / "3.npz", left=np.ones((2, 3), np.float32), right=np.zeros(4, np.int64))
    dataset = open_dataset(tmp_path, spec=PAIR)
    audit = Audit(dataset, PAIR)
    for index, crop in read_crops(dataset, PAIR, audit.skip):
        audit.add(index, crop)
    report = audit.finish()
    assert (report.used, report.exact.count, report.near.count, report.constant.count) == (4, 1, 0, 1)

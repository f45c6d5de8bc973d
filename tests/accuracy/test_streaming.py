"""Images as batches, for networks that see them differently."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from skdeploy.accuracy.streaming import Reader, crop_kind
from skdeploy.core import cpu
from skdeploy.core.spec import ModelSpec, TensorSpec
from skdeploy.images.dataset import Dataset, normalise
from skdeploy.images.decoding import Crop, ImageError
from tests import tiny

CARD = tiny.spec()
LARGE = CARD.model_copy(update={"input": CARD.input.model_copy(update={"height": 36, "width": 36})})
INPUT = TensorSpec(name="input", dtype="float32", shape=("batch", 3, "height", "width"))
RAW = TensorSpec(name="input", dtype="uint8", shape=(2, "height", "width", 3))


def opened(spec: ModelSpec, tensor: TensorSpec) -> Any:
    """All that a reader looks at."""
    return SimpleNamespace(spec=spec), SimpleNamespace(inputs=(tensor,))


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (7, 36, 36, 3), dtype=np.uint8)


def test_each_network_gets_its_own_crop_type_and_batch(images: NDArray[np.uint8]) -> None:
    reader = Reader([opened(CARD, INPUT), opened(LARGE, INPUT), opened(LARGE, RAW)], Dataset("d", pixels=images), 4)
    first, second = list(reader.batches(0))
    assert (first.stop, second.stop) == (4, 7)
    assert second.rows[crop_kind(CARD)] == [4, 5, 6]
    ((small, count),) = first.feeds[crop_kind(CARD), (INPUT,)]
    assert count == 4
    np.testing.assert_array_equal(small["input"], normalise(images[:4, 2:34, 2:34], CARD.preprocess))
    ((large, _),) = first.feeds[crop_kind(LARGE), (INPUT,)]
    assert large["input"].shape == (4, 3, 36, 36)
    raw = second.feeds[crop_kind(LARGE), (RAW,)]  # of fixed batch: three images are one batch and a filled one
    assert [count for _, count in raw] == [2, 1]
    np.testing.assert_array_equal(raw[1][0]["input"], images[[6, 6]])


def test_an_image_that_one_network_cannot_have_is_left_out_for_that_one(
    images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a file goes away between two reads: what is kept of the other network must not depend on this one."""
    real = Dataset.crop

    def crop(self: Dataset, index: int, spec: ModelSpec) -> Crop:
        if (index, spec) in ((1, LARGE), (3, CARD)):
            raise ImageError("gone", "gone")
        return real(self, index, spec)

    monkeypatch.setattr(Dataset, "crop", crop)
    (batch,) = Reader([opened(CARD, INPUT), opened(LARGE, INPUT)], Dataset("d", pixels=images), 8).batches(0)
    assert batch.rows == {crop_kind(CARD): [0, 1, 2, 4, 5, 6], crop_kind(LARGE): [0, 2, 3, 4, 5, 6]}
    for spec, row in ((CARD, 3), (LARGE, 1)):
        assert {n: image.name for n, image in batch.unreadable[crop_kind(spec)].items()} == {row: f"images[{row}]"}
        ((feed, count),) = batch.feeds[crop_kind(spec), (INPUT,)]
        assert (count, len(feed["input"])) == (6, 6)


def test_reading_begins_where_it_is_asked_to_and_ends_with_the_images(images: NDArray[np.uint8]) -> None:
    reader = Reader([opened(CARD, INPUT)], Dataset("d", pixels=images), 4)
    assert [batch.rows[crop_kind(CARD)] for batch in reader.batches(5)] == [[5, 6]]
    assert list(reader.batches(7)) == []


def test_on_one_core_an_array_is_prepared_by_the_thread_that_runs_the_network(
    images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a worker of a cluster, whose neighbours have the other cores."""
    threads: set[int] = set()
    crop = Dataset.crop_or_error

    def noted(dataset: Dataset, index: int, spec: ModelSpec) -> Crop | ImageError:
        threads.add(threading.get_ident())
        return crop(dataset, index, spec)

    monkeypatch.setattr(Dataset, "crop_or_error", noted)
    reader = Reader([opened(CARD, INPUT)], Dataset("d", pixels=images), 2)
    for cores, alone in ((1, True), (2, False)):
        threads.clear()
        monkeypatch.setattr(cpu, "affinity", lambda cores=cores: cores)
        assert [batch.stop for batch in reader.batches(0)][-1] == len(images)
        assert (threads == {threading.get_ident()}) is alone

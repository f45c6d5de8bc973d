"""Batches for a graph: what it wants of each image, and no image twice, lost or mixed up."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from skdeploy.core.spec import ModelSpec, TensorSpec
from skdeploy.images.feeds import batches_of, feeds_of
from tests.conftest import TinySpec
from tests.graphs.networks import card
from tests.quant.noise import Pixels, normalised, pixels


@pytest.fixture
def spec(tiny_spec: TinySpec) -> ModelSpec:
    return card(tiny_spec())


def planes(batch: int | str = "batch") -> tuple[TensorSpec, ...]:
    return (TensorSpec(name="input", dtype="float32", shape=(batch, 3, 20, 24)),)


def raw(batch: int | str = "batch") -> tuple[TensorSpec, ...]:
    return (TensorSpec(name="pixels", dtype="uint8", shape=(batch, 20, 24, 3)),)


def test_a_float_input_gets_normalised_planes_and_a_uint8_input_the_pixels(spec: ModelSpec) -> None:
    images = pixels(3)
    (found,) = feeds_of(images, spec, planes()).values()
    assert (found.dtype, found.shape) == (np.float32, (3, 3, 20, 24))
    assert found == pytest.approx(normalised(images), abs=1e-5)  # one multiply-add in float32 against float64
    assert feeds_of(images, spec, raw())["pixels"] is images


@pytest.mark.parametrize(("images", "size", "counts"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 5, [2]), (0, 4, [])])
def test_a_dynamic_graph_gets_what_is_there(images: int, size: int, counts: list[int], spec: ModelSpec) -> None:
    crops = pixels(images)
    found = list(batches_of(crops, spec, raw(), size))
    assert [count for _, count in found] == [len(feed["pixels"]) for feed, _ in found] == counts
    if images:
        assert np.array_equal(np.concatenate([feed["pixels"] for feed, _ in found]), crops)


@pytest.mark.parametrize(("images", "counts"), [(7, [4, 3]), (8, [4, 4]), (1, [1])])
def test_a_fixed_graph_gets_its_own_size_filled_up_with_the_last_image(
    images: int, counts: list[int], spec: ModelSpec
) -> None:
    crops = pixels(images)
    found = list(batches_of(crops, spec, raw(4), 100))
    assert [count for _, count in found] == counts
    assert all(feed["pixels"].shape == (4, 20, 24, 3) for feed, _ in found)
    real = [feed["pixels"][:count] for feed, count in found]
    assert np.array_equal(np.concatenate(real), crops)
    feed, count = found[-1]
    assert all(np.array_equal(image, crops[-1]) for image in feed["pixels"][count:])


def test_no_more_than_a_batch_of_crops_is_held(spec: ModelSpec) -> None:
    alive: list[weakref.ref[Pixels]] = []

    def crops() -> Iterator[Pixels]:
        for image in pixels(20):
            crop = image.copy()
            alive.append(weakref.ref(crop))
            yield crop

    held = []
    for _ in batches_of(crops(), spec, planes(), 5):
        gc.collect()
        held.append(sum(crop() is not None for crop in alive))
    assert len(alive) == 20
    assert max(held) <= 6  # a batch, and the one that the generator has just given

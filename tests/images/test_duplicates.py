"""The same image again: found when it is equal or was saved anew, and not taken for another one of its kind."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from skdeploy.images.dataset import Dataset, open_dataset, photographs
from skdeploy.images.duplicates import NEAR_BITS, Fingerprints, exact_pairs, fingerprints, near_pairs, perceptual_hash
from skdeploy.zoo.cards import load_card
from tests.tiny import Pixels, noise, spec

FASHION = Path(__file__).parents[2] / "calibration/fashion"


def saved(pixels: Pixels, quality: int = 75) -> Pixels:
    """As JPEG and back."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).reshape(pixels.shape)


def brightened(pixels: Pixels) -> Pixels:
    return np.clip(pixels * 1.1 + 8, 0, 255).astype(np.uint8)


def shifted(pixels: Pixels) -> Pixels:
    return np.roll(pixels, 1, axis=1)


def bits(one: Pixels, other: Pixels) -> int:
    """Hamming distance, by a way that is not the one tested."""
    words = zip(perceptual_hash(one), perceptual_hash(other), strict=True)
    return sum((int(a) ^ int(b)).bit_count() for a, b in words)


def taken(images: Pixels | list[Pixels], name: str = "x") -> Fingerprints:
    found = Fingerprints(name)
    for index, pixels in enumerate(images):
        found.add(pixels, f"{name}{index}")
    return found


@pytest.fixture(scope="module")
def fashion() -> Pixels:
    return open_dataset(FASHION).pixels


@pytest.fixture(scope="module")
def photos() -> Pixels:
    return photographs().load(load_card("sknet50")[0])


# ----- the hash


@pytest.mark.parametrize("shape", [(28, 28, 1), (224, 224, 3), (40, 64, 3), (9, 20, 1)])
def test_the_hash_is_of_the_lowest_frequencies_of_scipys_dct(shape: tuple[int, ...]) -> None:
    pixels = noise(*shape)
    low = dctn(pixels.astype(np.float64).sum(axis=2))[:16, :16].ravel()[1:]
    expected = np.zeros(256, np.uint8)
    expected[: low.size] = low > np.median(low)
    assert np.array_equal(np.unpackbits(perceptual_hash(pixels).view(np.uint8)), expected)


# The shares that duplicates.py states beside its threshold, with a little less asked for: another libjpeg rounds otherwise.
# A small image shifted by a pixel is another one: a pixel of 28 is more than the difference between two articles.
@pytest.mark.parametrize(
    ("change", "small", "large"),
    [(saved, (0.97, 1), (1, 1)), (brightened, (0.99, 1), (1, 1)), (shifted, (0, 0), (1, 1))],
)
def test_images_are_recognised_when_changed_a_little(
    fashion: Pixels, photos: Pixels, change: Any, small: tuple[float, float], large: tuple[float, float]
) -> None:
    for images, (least, most) in ((fashion, small), (photos, large)):
        assert least <= np.mean([bits(pixels, change(pixels)) <= NEAR_BITS for pixels in images]) <= most


def test_a_mirrored_photograph_is_another_image(photos: Pixels) -> None:
    assert all(bits(pixels, pixels[:, ::-1]) > 2 * NEAR_BITS for pixels in photos)


def test_no_two_articles_of_fashion_mnist_are_taken_for_one(fashion: Pixels) -> None:
    evaluation = open_dataset(FASHION, archive="evaluation.npz").pixels
    mine, theirs = taken(fashion), taken(evaluation)
    assert near_pairs(mine) == []  # of 130,816 pairs
    assert near_pairs(mine, theirs) == []  # of 1,024,000
    assert near_pairs(theirs) == []  # of 1,999,000
    assert exact_pairs(mine, theirs) == []


# ----- pairs


def test_equal_images_are_paired_with_the_first(fashion: Pixels) -> None:
    images = fashion[[0, 1, 0, 2, 1, 0]]
    pairs = exact_pairs(taken(images))
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 2), (1, 4), (0, 5)]
    assert near_pairs(taken(images)) == []


def test_a_single_level_makes_an_equal_image_a_near_one(fashion: Pixels) -> None:
    images = fashion[[3, 4, 3]].copy()
    images[2, 14, 14, 0] ^= 1
    assert exact_pairs(taken(images)) == []
    ((first, second, distance),) = near_pairs(taken(images))
    assert (first, second) == (0, 2)
    assert distance <= 2


def test_each_near_image_is_paired_once_with_the_nearest_earlier_one(photos: Pixels) -> None:
    base = photos[0]
    images = [photos[1], shifted(base), base, saved(base, 90), photos[2]]
    pairs = near_pairs(taken(images))
    assert [(pair.first, pair.second) for pair in pairs] == [(1, 2), (2, 3)]
    assert [pair.bits for pair in pairs] == [bits(shifted(base), base), bits(base, saved(base, 90))]


def test_pairs_over_many_blocks_are_those_of_a_naive_search() -> None:
    generator = np.random.default_rng(3)
    images = [noise(16, 16, 1, seed=seed) for seed in range(600)]
    for place, source in ((10, 5), (300, 2), (599, 300), (256, 255), (512, 0)):
        images[place] = np.clip(images[source].astype(int) + generator.integers(-2, 3, (16, 16, 1)), 0, 255).astype(
            np.uint8
        )
    found = taken(images)
    hashes = [int.from_bytes(perceptual_hash(pixels).tobytes(), "big") for pixels in images]
    expected = []
    for later in range(600):
        distances = [(hashes[later] ^ hashes[earlier]).bit_count() for earlier in range(later)]
        if distances and min(distances) <= NEAR_BITS:
            expected.append((distances.index(min(distances)), later, min(distances)))
    assert len(expected) == 5
    assert [tuple(pair) for pair in near_pairs(found)] == expected


def test_another_set_is_searched_for_equal_and_near_images(fashion: Pixels) -> None:
    theirs = taken([fashion[0], fashion[1], saved(fashion[2], 90), fashion[1]], "theirs")
    mine = taken(fashion[[5, 1, 2, 6]])
    assert [tuple(pair) for pair in exact_pairs(mine, theirs)] == [(1, 1, 0)]
    assert [(pair.first, pair.second) for pair in near_pairs(mine, theirs)] == [(2, 2)]


def test_images_of_one_colour_are_equal_or_nothing() -> None:
    images = [np.full((28, 28, 1), level, np.uint8) for level in (0, 255, 7, 0)]
    assert [tuple(pair) for pair in exact_pairs(taken(images))] == [(0, 3, 0)]
    assert near_pairs(taken(images)) == []
    assert near_pairs(taken(images), taken(images[:1])) == []


def test_crops_of_few_pixels_must_agree_in_the_same_share_of_their_bits() -> None:
    images = noise(64, 8, 8, 1)
    assert near_pairs(taken(images)) == []  # of 63 bits, 22 would be half of what unrelated images differ in
    changed = images[:1].copy()
    changed[0, 0, 0, 0] ^= 1
    assert len(near_pairs(taken(np.concatenate([images, changed])))) == 1


def test_nothing_has_no_pairs() -> None:
    empty = Fingerprints("x")
    assert exact_pairs(empty) == near_pairs(empty) == []
    assert near_pairs(taken(noise(2, 16, 16, 1)), empty) == near_pairs(empty, taken(noise(2, 16, 16, 1))) == []


def test_fingerprints_are_of_the_crops_and_know_the_names() -> None:
    images = noise(3, 36, 36, 3)
    images[1, 2:34, 2:34] = images[0, 2:34, 2:34]  # equal but for the border, which the crop cuts off
    found = fingerprints(Dataset("set", pixels=images), spec())
    assert (found.name, found.names) == ("set", ["images[0]", "images[1]", "images[2]"])
    assert [tuple(pair) for pair in exact_pairs(found)] == [(0, 1, 0)]

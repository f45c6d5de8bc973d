"""Which images calibrate: a balanced, repeatable choice."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np

from skdeploy.core.spec import ModelSpec
from skdeploy.images.dataset import Dataset, check_count
from skdeploy.images.samples import random_samples


def select(dataset: Dataset, count: int, seed: int) -> Dataset:
    """At most ``count`` images, in an order where any beginning is as balanced as the whole; all of them if there are fewer.

    With labels, the number of images of each class differs by one at most, but for classes that have no more images. The choice
    depends on the seed, the number of images and the labels, and on no generator of a library: images are ranked by
    SHA-256(seed, index), classes take turns. No image is opened. Raises UsageError for a count below 1.
    """
    check_count(count, "--calib-num")
    ranks = [hashlib.sha256(f"{seed}:{index}".encode()).digest() for index in range(len(dataset))]
    order = sorted(range(len(dataset)), key=ranks.__getitem__)
    if dataset.labels is not None:
        turns: defaultdict[int, int] = defaultdict(int)
        turn_of = {}
        for index in order:
            label = int(dataset.labels[index])
            turn_of[index] = turns[label]
            turns[label] += 1
        order.sort(key=turn_of.__getitem__)  # stable: within a turn, classes stay in the order of the ranks
    return dataset.take(order[:count])


def random_images(spec: ModelSpec, count: int, seed: int) -> Dataset:
    """Noise of the card's size in place of images or samples, marked as such. Raises UsageError for a count below 1.

    Pixels are uniform; the bytes are those of PCG64's raw stream, which NumPy promises to keep (NEP 19). The side is
    that of the resize: a resize would smooth the noise.
    """
    check_count(count, "--calib-num")
    name = f"random noise, seed {seed}"
    if not spec.takes_images:
        return Dataset(name, pixels=random_samples(spec, count, seed), random=True, word=spec.sample_word)
    side, channels = spec.preprocess.resize, spec.input.channels
    height, width = (side, side) if side is not None else (spec.input.height, spec.input.width)
    size = count * height * width * channels
    words = np.random.PCG64(seed).random_raw(-(-size // 8)).astype("<u8")
    pixels = words.view(np.uint8)[:size].reshape(count, height, width, channels)
    return Dataset(name, pixels=pixels, random=True)

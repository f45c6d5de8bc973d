"""Images that are the same, or nearly: within a set, and between the sets for calibration and for accuracy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skdeploy.core.spec import ModelSpec
from skdeploy.images.dataset import Dataset
from skdeploy.images.decoding import Pixels

Words = NDArray[np.uint64]

DIGEST_BYTES: Final = hashlib.sha256().digest_size
FREQUENCIES: Final = 16  # each way: 255 bits without the mean

# Of 255 bits. Measured over the pairs of different images of Fashion-MNIST, whose articles lie alike on black: the nearest of
# 130,816 pairs in calibration.npz differ in 44 bits, of 1,024,000 between it and evaluation.npz in 32, of 1,999,000 in
# evaluation.npz in 24 (two dresses of one outline). The same images saved as JPEG of quality 75: 98.4 % within 22 at 28 x 28,
# all within 4 at 224 x 224 (16 photographs); brightened to 1.1 x + 8: 99.8 %, and all; shifted by a pixel: none at 28 x 28,
# where a pixel changes an image more than two articles differ, and all at 224 x 224.
NEAR_BITS: Final = 22

BLOCK: Final = 256  # rows of the distance table at a time: 256 x 10,000 x 2 bytes


class Pair(NamedTuple):
    """Two places, and in how many bits of 255 the images differ; 0 also where they are equal byte by byte."""

    first: int
    second: int
    bits: int


class Fingerprints:
    """Fingerprints of the images of a set: a digest of each crop and a perceptual hash, 64 bytes per image.

    The hash has a bit for each of the 16 x 16 lowest frequencies of the crop's DCT-II but the mean: whether its coefficient is
    above their median. Recompression, brightness and contrast change few bits. Crops of one colour have no structure to hash.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.names: list[str] = []
        self.digests: list[bytes] = []
        self._hashes: list[Words] = []
        self._plain: list[bool] = []
        self.near_bits = NEAR_BITS

    def add(self, pixels: Pixels, name: str) -> None:
        """Takes the next crop, uint8 (H, W, C), or a sample of arrays, of which only the bytes are compared."""
        self.names.append(name)
        self.digests.append(hashlib.sha256(pixels.tobytes()).digest())
        if pixels.dtype.names is not None:
            self._hashes.append(np.zeros(4, np.uint64))
            self._plain.append(True)
            return
        self._hashes.append(perceptual_hash(pixels))
        self.near_bits = NEAR_BITS * _bits(pixels) // (FREQUENCIES**2 - 1)  # crops below 16 pixels have fewer
        self._plain.append(bool((pixels == pixels[0, 0]).all()))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All but the names, for a file: ``extend`` reads it."""
        return {
            "digests": np.frombuffer(b"".join(self.digests), np.uint8).reshape(-1, DIGEST_BYTES),
            "hashes": self.hashes(range(len(self.names))),
            "plain": np.array(self._plain, np.bool_),
        }

    def extend(self, arrays: Mapping[str, NDArray[Any]], near_bits: int, names: Sequence[str]) -> None:
        """Takes the images of another one, by its ``arrays``. Raises ValueError or KeyError where they are of others."""
        digests, hashes, plain = (arrays[name] for name in ("digests", "hashes", "plain"))
        shapes = (digests.shape, hashes.shape, plain.shape)
        if shapes != ((len(names), DIGEST_BYTES), (len(names), 4), (len(names),)) or hashes.dtype != np.uint64:
            raise ValueError("the fingerprints have another shape")
        self.names += names
        self.digests += [row.astype(np.uint8).tobytes() for row in digests]
        self._hashes += list(hashes)
        self._plain += plain.astype(np.bool_).tolist()
        self.near_bits = near_bits if names else self.near_bits

    @property
    def structured(self) -> list[int]:
        """The first of each image that is more than one colour."""
        return [index for index in sorted(_firsts(self).values()) if not self._plain[index]]

    def hashes(self, indices: Sequence[int]) -> Words:
        """(len(indices), 4)"""
        return np.array([self._hashes[index] for index in indices], np.uint64).reshape(-1, 4)


def fingerprints(dataset: Dataset, spec: ModelSpec) -> Fingerprints:
    """Of all images of a set, one at a time. Raises UsageError naming an image that cannot be read."""
    found = Fingerprints(dataset.name)
    for index, pixels in enumerate(dataset.crops(spec)):
        found.add(pixels, dataset.name_of(index))
    return found


def perceptual_hash(pixels: Pixels) -> Words:
    """255 bits (fewer for crops of less than 16 pixels) in four words, of the sum over the channels of uint8 (H, W, C)."""
    grey = np.einsum("yxc->yx", pixels, dtype=np.float64)
    rows, columns = _cosines(grey.shape[0]), _cosines(grey.shape[1])
    # Not @ for the larger product: waking BLAS's threads for 1 MFLOP took 10 ms while the network kept the cores busy.
    low = (np.einsum("fy,yx->fx", rows, grey) @ columns.T).ravel()[1:]
    bits = np.zeros(FREQUENCIES**2, np.uint8)
    bits[: low.size] = low > np.median(low)
    return np.packbits(bits).view(np.uint64)


def _bits(pixels: Pixels) -> int:
    height, width, _ = pixels.shape
    return min(FREQUENCIES, int(height)) * min(FREQUENCIES, int(width)) - 1


@lru_cache(maxsize=8)
def _cosines(size: int) -> NDArray[np.float64]:
    """The first rows of the DCT-II of this size, not normalised: (at most 16, size)."""
    frequency, place = np.arange(min(FREQUENCIES, size))[:, None], np.arange(size)[None, :]
    return np.asarray(np.cos(np.pi * frequency * (place + 0.5) / size))


def exact_pairs(images: Fingerprints, others: Fingerprints | None = None) -> list[Pair]:
    """(earlier, later) for each image whose crop equals an earlier one; or (image, other) for each that is among ``others``."""
    known = _firsts(images if others is None else others)
    found = [(index, known[digest]) for index, digest in enumerate(images.digests) if digest in known]
    if others is not None:
        return [Pair(index, other, 0) for index, other in found]
    return [Pair(first, index, 0) for index, first in found if first != index]


def _firsts(images: Fingerprints) -> dict[bytes, int]:
    """The first place of each digest."""
    return {digest: index for index, digest in reversed(list(enumerate(images.digests)))}


def near_pairs(images: Fingerprints, others: Fingerprints | None = None) -> list[Pair]:
    """(earlier, later, bits) for each image nearly like an earlier one; or (image, other, bits). Equal ones are not among them.

    Each image once, with the nearest. All pairs are compared, a block at a time: half a second for 10,000 images, where
    decoding them takes half a minute; an index over bands of bits would need 23 look-ups an image to miss none.
    """
    rows = images.structured
    if others is None:
        columns, table = rows, images.hashes(rows)
    else:
        equal = {pair.first for pair in exact_pairs(images, others)}
        rows = [index for index in rows if index not in equal]
        columns = others.structured
        table = others.hashes(columns)
    mine = images.hashes(rows)
    pairs = []
    for start in range(0, len(rows) if len(columns) else 0, BLOCK):
        block = mine[start : start + BLOCK]
        reach = len(columns) if others is not None else min(start + BLOCK, len(columns))
        distance = np.zeros((len(block), reach), np.uint16)
        for word in range(4):
            distance += np.bitwise_count(block[:, None, word] ^ table[None, :reach, word])
        if others is None:  # only earlier ones
            distance[np.arange(reach)[None, :] >= start + np.arange(len(block))[:, None]] = np.iinfo(np.uint16).max
        nearest = distance.argmin(axis=1)
        for row in np.flatnonzero(distance[np.arange(len(block)), nearest] <= images.near_bits):
            mate, bits = columns[nearest[row]], int(distance[row, nearest[row]])
            place = rows[start + int(row)]
            pairs.append(Pair(mate, place, bits) if others is None else Pair(place, mate, bits))
    return pairs

"""Inner tensors of two stages of the line: which of them are the same tensor, where they are kept, how far they are apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skdeploy.backends.base import Array
from skdeploy.backends.metrics import sqnr_db


@dataclass(frozen=True)
class Pair:
    """One tensor in two stages: ``found`` is what the suspected stage calls it, ``reference`` what the stage before does.

    ``offset``: the suspected stage holds t - offset (shifted INT8 tensors), and is compared after adding it.
    """

    found: str
    reference: str
    offset: float = 0.0


@dataclass(frozen=True)
class Own:
    """A tensor computed by a stage from the reference's inputs, which shows only its own error.

    ``value`` is in the reference's terms, the offset added. ``inputs``: the found names of the tensors that it is made of,
    none where they are not known.
    """

    pair: Pair
    value: Array
    inputs: tuple[str, ...] = ()


Visit = Callable[[str, Array], None]
VisitOwn = Callable[[Own], None]


class Recording:
    """Tensors by name, each in a file of a folder: a network's intermediates together may be larger than memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}

    def put(self, name: str, array: Array) -> None:
        """Keeps a copy, at most float64; of a tensor that comes twice, the last."""
        path = self._files.setdefault(name, self._folder / f"{len(self._files)}.npy")
        np.save(path, array)

    def get(self, name: str) -> Array:
        """The tensor as it was put, mapped from its file."""
        array: Array = np.load(self._files[name], mmap_mode="r")
        return array

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def feed(self, pair: Pair) -> NDArray[np.float32]:
        """Convert the reference's value for the suspected stage: to float32, without the offset."""
        reference = self.get(pair.reference)
        return (reference - pair.offset if pair.offset else reference).astype(np.float32)


def decibels(expected: Array, found: Array) -> float | None:
    """SQNR of ``found``, 10 log10(sum expected^2 / sum error^2), at most 300 dB.

    None where there is none: the shapes differ, a value of ``found`` is not finite, or nothing is expected but zeros.
    """
    if expected.shape != found.shape or not np.isfinite(found).all():
        return None
    wanted = expected.astype(np.float64)
    error = found - wanted
    noise, signal = float(np.vdot(error, error)), float(np.vdot(wanted, wanted))
    return None if signal == 0 < noise else sqnr_db(signal, noise)

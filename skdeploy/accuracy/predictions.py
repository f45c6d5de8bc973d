"""Predictions so far, kept in the user's cache folder so that a killed run continues from there."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from skdeploy.accuracy.gate import TOP, LogitsAgreement, TopClasses
from skdeploy.backends.base import Array
from skdeploy.backends.metrics import SMALLEST, sqnr_db
from skdeploy.core.errors import SkdeployError
from skdeploy.core.files import written_whole
from skdeploy.images.audit_report import Unreadable

KEPT: Final = 64  # evaluations in the cache, a few 100 kB each
SUMS: Final = 6  # columns of ``Predictions.sums``
ABSENT: Final = -1  # in place of a class: not predicted yet, or the image cannot be read


@dataclass
class Predictions:
    """Of the first ``done`` of N images. ``top``, (runners, N, up to 5): the classes of each image, best first, -1 for none.

    ``sums``, (runners - 1, N, 6), of each runner but the first against the first, image by image: sum of ref^2, error^2,
    found^2 and ref * found over the logits, the largest |error| and |ref|.
    """

    top: TopClasses
    sums: NDArray[np.float64]
    done: int = 0
    unreadable: list[Unreadable] = field(default_factory=list)

    @classmethod
    def none_yet(cls, runners: int, images: int, classes: int) -> Self:
        dtype = np.int16 if classes <= np.iinfo(np.int16).max else np.int32
        return cls(
            np.full((runners, images, min(TOP, classes)), ABSENT, dtype),
            np.zeros((max(0, runners - 1), images, SUMS), np.float64),
        )

    @property
    def readable(self) -> NDArray[np.bool_]:
        """(N,): which images were predicted."""
        return np.asarray(self.top[0, :, 0] != ABSENT)

    def add(self, rows: list[int], logits: list[Array]) -> None:
        """The logits of some images, (len(rows), classes) of each runner."""
        reference = logits[0].astype(np.float64)
        for runner, found in enumerate(logits):
            self.top[runner, rows] = best_classes(found)
            if runner:
                got = found.astype(np.float64)
                error = got - reference
                columns = (
                    np.sum(reference**2, axis=1),
                    np.sum(error**2, axis=1),
                    np.sum(got**2, axis=1),
                    np.sum(reference * got, axis=1),
                    np.abs(error).max(axis=1),
                    np.abs(reference).max(axis=1),
                )
                self.sums[runner - 1, rows] = np.stack(columns, axis=1)

    def logits_agreement(self, runner: int) -> LogitsAgreement:
        """Of a runner, from 1, with the first, over all images that were predicted."""
        ref, error, got, product, worst, largest = self.sums[runner - 1, self.readable].T
        norms = np.sqrt(ref * got)
        cosine = np.asarray((ref == 0) & (got == 0), np.float64)  # of zeros: 1 with zeros, else 0
        np.divide(product, norms, out=cosine, where=norms > 0)
        decibels = [sqnr_db(float(signal), float(noise)) for signal, noise in zip(ref, error, strict=True)]
        return LogitsAgreement(
            max_rel_error=float(worst.max()) / max(float(largest.max()), SMALLEST),
            min_cosine=float(cosine.min()),
            min_sqnr_db=min(decibels),
            sqnr_db=sqnr_db(float(ref.sum()), float(error.sum())),
        )


def best_classes(logits: Array) -> TopClasses:
    """The up to 5 classes with the largest logits, (N, classes) -> (N, 5), best first; of equal ones the lower number."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :TOP]


class Cache:
    """One file for one key: the same artifacts, images, preprocessing, tools and batch. Two runs at once may share it: each
    replaces it whole, and whatever is in it is right. Where the folder cannot be written to, ``problem`` says why.
    """

    def __init__(self, key: str) -> None:
        folder = cache_folder()
        self.path = folder / f"{key}.npz" if folder else None
        self.problem = "" if folder else "there is no home folder, and XDG_CACHE_HOME is not set"

    def load(self, into: Predictions) -> str:
        """Fills ``into`` from an earlier run. Returns a note if there is a file that cannot be used."""
        if self.path is None:
            return ""
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                found: Any = {name: content[name] for name in ("top", "sums", "unreadable")}
            self._take(found, into)
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            return f"cannot use the predictions of an earlier run, so all are made again: {self.path}: {error}"
        return ""

    def _take(self, found: dict[str, Any], into: Predictions) -> None:
        top, sums = found["top"], found["sums"]
        unreadable = [Unreadable.model_validate(entry) for entry in json.loads(found["unreadable"].tobytes().decode())]
        done = top.shape[1] if top.ndim == 3 else -1
        if (
            top.dtype != into.top.dtype
            or sums.dtype != into.sums.dtype
            or not 0 <= done <= into.top.shape[1]
            or top.shape != (len(into.top), done, into.top.shape[2])
            or sums.shape != (len(into.sums), done, SUMS)
            or int((top[0, :, 0] == ABSENT).sum()) != len(unreadable)
        ):
            raise ValueError("its content does not belong to this evaluation")
        into.top[:, :done], into.sums[:, :done] = top, sums
        into.done, into.unreadable = done, unreadable

    def save(self, predictions: Predictions) -> bool:
        """Replaces the file. False if it cannot be written; ``problem`` then says why, and no further try is made."""
        if self.path is None or self.problem:
            return False
        done = predictions.done
        unreadable = json.dumps([image.model_dump(mode="json") for image in predictions.unreadable]).encode()
        try:
            with written_whole(self.path) as partial, partial.open("wb") as file:
                np.savez(
                    file,
                    top=predictions.top[:, :done],
                    sums=predictions.sums[:, :done],
                    unreadable=np.frombuffer(unreadable, np.uint8),
                )
            _forget_oldest(self.path.parent)
        except SkdeployError as error:  # what cannot be cached is evaluated all the same, and the caller says so
            self.problem = error.message
            return False
        except OSError as error:
            self.problem = f"{self.path.parent}: {error.strerror}"
            return False
        return True


def cache_folder() -> Path | None:
    """``evaluations`` in skdeploy's folder of the user's cache: XDG_CACHE_HOME if it is an absolute path, else ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if Path(given).is_absolute():
        return Path(given) / "skdeploy" / "evaluations"
    try:
        return Path.home() / ".cache" / "skdeploy" / "evaluations"
    except RuntimeError:
        return None


def _forget_oldest(folder: Path) -> None:
    """Two runs may both do so at once: a file that is already gone is not an error."""
    times: list[tuple[float, Path]] = []
    for file in folder.glob("*.npz"):
        try:
            times.append((file.stat().st_mtime, file))
        except FileNotFoundError:
            continue
    for _, file in sorted(times)[:-KEPT]:
        file.unlink(missing_ok=True)

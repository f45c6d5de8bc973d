"""Calibration images one after the other: a few that cannot be read are passed over, and named."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from skdeploy.core import cpu
from skdeploy.core.errors import CalibrationError
from skdeploy.core.listing import some_lines
from skdeploy.core.spec import ModelSpec
from skdeploy.images.audit_report import Unreadable
from skdeploy.images.dataset import Dataset, printable
from skdeploy.images.decoding import Crop, ImageError

MAX_UNREADABLE: Final = (
    0.01  # of the images asked for: more than the odd broken download, and the set is not what it seems
)
WORKERS: Final = 4  # decoding keeps up with a network at that, and so many whole photographs are in memory at a time

Given = TypeVar("Given")
Made = TypeVar("Made")


def read_crops(
    dataset: Dataset,
    spec: ModelSpec,
    on_unreadable: Callable[[Unreadable], object] | None = None,
    *,
    whole: int | None = None,
) -> Iterator[tuple[int, Crop]]:
    """(index, crop) of each image that can be read, in order; ``on_unreadable`` gets the others.

    A few images at a time are in memory. Files are decoded ahead in threads: Pillow releases the interpreter while it decodes.
    Raises CalibrationError, naming the first, where more than 1 % of the images cannot be read, or of ``whole`` images of
    which these are some: once it is sure, no further crop is given, but the rest is read to count them all.
    """
    whole = len(dataset) if whole is None else whole
    allowed = int(MAX_UNREADABLE * whole)
    unreadable: list[Unreadable] = []
    for index, found in _decoded(dataset, spec):
        if isinstance(found, Crop):
            if len(unreadable) <= allowed:
                yield index, found
            continue
        unreadable.append(Unreadable(name=dataset.name_of(index), reason=printable(found.reason)))
        if on_unreadable is not None:
            on_unreadable(unreadable[-1])
    check_unreadable(unreadable, dataset, whole)


def check_unreadable(unreadable: Sequence[Unreadable], dataset: Dataset, whole: int) -> None:
    """Raises CalibrationError, naming the first, where more than 1 % of ``whole`` images cannot be read."""
    allowed = int(MAX_UNREADABLE * whole)
    if len(unreadable) > allowed:
        shown = some_lines([f"{image.name}: {image.reason}" for image in unreadable])
        raise CalibrationError(
            f"{len(unreadable)} of the {whole} {dataset.word}s from {dataset.name} cannot be used; at most "
            f"{allowed} (1 %) may be unusable:\n{shown}",
            advice="remove or replace them, and run the same command again",
        )


def _decoded(dataset: Dataset, spec: ModelSpec) -> Iterator[tuple[int, Crop | ImageError]]:
    indices, workers = range(len(dataset)), min(WORKERS, cpu.cores())
    if dataset.pixels is not None or workers == 1:  # an array has nothing to decode
        return ((index, dataset.crop_or_error(index, spec)) for index in indices)
    return ahead(lambda index: (index, dataset.crop_or_error(index, spec)), indices, workers, 2 * workers - 1)


def ahead(
    make: Callable[[Given], Made], items: Iterable[Given], workers: int, most: int
) -> Generator[Made, None, None]:
    """Yield ``make`` of each item, in order: up to ``most`` are made in threads while one is used."""
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

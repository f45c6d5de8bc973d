"""Which samples a job is about, told without reading them all, and checked where that is cheap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from skdeploy.core.errors import IntegrityError, UsageError
from skdeploy.core.files import digest_file, digest_json
from skdeploy.images.dataset import Dataset
from skdeploy.shards.part import Part

CHECKED: Final = 3  # files of each part that are read again: data of the same names may hold other images


def listing_digest(dataset: Dataset) -> str:
    """SHA-256 over names and labels; of samples in one file over their content too, which is in memory anyway."""
    labels = None if dataset.labels is None else dataset.labels.tolist()
    if dataset.pixels is not None:
        return digest_json([dataset.digest, labels])
    return digest_json([[dataset.name_of(index) for index in range(len(dataset))], labels])


def check_files(part: Part, digests: Sequence[str], dataset: Dataset, span: range) -> None:
    """Raises UsageError unless some of the files are those that the part was made of: ``digests`` are of ``span``.

    IntegrityError for another number of digests; samples in one file have none.
    """
    if len(digests) != (len(span) if dataset.files else 0):
        raise part.other_content()
    if not digests:
        return
    for place in sorted({at * (len(span) - 1) // (CHECKED - 1) for at in range(CHECKED)}):
        file = dataset.files[span[place]]
        try:
            same = digest_file(file) == digests[place]
        except IntegrityError as error:
            raise UsageError(
                f"cannot compare {part.name} with the data: {error.message}", advice=error.advice
            ) from error
        if not same:
            raise UsageError(
                f"{part.name} was made of other data: {dataset.name_of(span[place])} has another content here",
                advice="give the same --data as for the parts, or make the parts again",
            )

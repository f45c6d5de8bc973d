"""Which images decide parity: the user's own where any were given, else the card's, else photographs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from skdeploy.core.spec import ModelSpec
from skdeploy.images.dataset import EVALUATION, Dataset, default_dataset, open_dataset
from skdeploy.images.pairs import open_pairs
from skdeploy.line.formats import Format
from skdeploy.line.options import ExportOptions


def images_of_export(options: ExportOptions, lowering: Format, spec: ModelSpec) -> Dataset:
    """The images that an export is judged on, ``options.num_images`` at most.

    ``--images``; else ``--data``, which calibrated nothing; else what the precision was given, such as INT8's ``--calib``; else
    the card's own; else photographs. Those of a user are evenly spread: folders are sorted by class.
    Raises UsageError where there are no images.
    """
    data = options.accuracy.data
    if options.images is None and data is not None and options.accuracy.takes_pairs(spec):
        return replace(open_pairs(data, spec).inputs.spread(options.num_images, spec), chosen="pairs")
    if options.images is None and data is not None:
        return replace(
            open_dataset(data, archive=EVALUATION, spec=spec).spread(options.num_images, spec), chosen="data"
        )
    images = lowering.images(options.num_images, spec) if options.images is None else None
    return images if images is not None else parity_dataset(spec, options.images, options.num_images)


def parity_dataset(spec: ModelSpec, images: Path | None, count: int) -> Dataset:
    """The first ``count`` of the given images, or of the card's."""
    if images is not None:
        return replace(open_dataset(images, count, spec=spec), chosen="images")
    return default_dataset(spec, count)

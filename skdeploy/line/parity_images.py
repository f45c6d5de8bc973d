"""Which images decide parity: the user's own where any were given, else the card's, else photographs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from skdeploy.core.spec import ModelSpec
from skdeploy.images.dataset import Dataset, default_dataset, open_dataset
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.options import ExportOptions


def images_of_export(options: ExportOptions, spec: ModelSpec) -> Dataset:
    """The images that an export is judged on, ``options.num_images`` at most.

    ``--images``; else what INT8 was given: ``--data``, which calibrated nothing, before ``--calib``, which did (in-sample, and
    the report says so); else the card's own; else photographs. Those of INT8 are evenly spread: folders are sorted by class.
    Raises UsageError where there are no images.
    """
    asked = options.int8
    if options.images is None and options.precision.integer:
        if asked.data is not None:
            images = open_dataset(asked.data, archive="evaluation.npz")
            return replace(images.spread(options.num_images, spec), chosen="data")
        if asked.ranges is None and asked.calibration.images is not None:
            images = _calibration_images(asked.calibration, asked.calibration.images)
            return replace(images.spread(options.num_images, spec), chosen="calib")
    return parity_dataset(spec, options.images, options.num_images)


def parity_dataset(spec: ModelSpec, images: Path | None, count: int) -> Dataset:
    """The first ``count`` of the given images, or of the card's."""
    if images is not None:
        return replace(open_dataset(images, count), chosen="images")
    return default_dataset(spec, count)


def _calibration_images(asked: CalibrationOptions, images: Path) -> Dataset:
    from skdeploy.quant.recipe import load_recipe, open_images

    return open_images(*load_recipe(str(images))) if asked.from_recipe else open_dataset(images)

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

    ``--images``; else ``--data``, which calibrated nothing; else ``--calib`` of INT8 (in-sample, and the report says so); else
    the card's own; else photographs. Those of a user are evenly spread: folders are sorted by class.
    Raises UsageError where there are no images.
    """
    asked, data = options.int8, options.accuracy.data
    if options.images is None and data is not None:
        return replace(open_dataset(data, archive="evaluation.npz").spread(options.num_images, spec), chosen="data")
    calibration = asked.calibration
    if options.images is None and options.precision.integer and asked.ranges is None and calibration.images is not None:
        images = _calibration_images(calibration, calibration.images)
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

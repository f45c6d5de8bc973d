"""Networks that give images: restoration, dehazing, deblurring, super-resolution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from skdeploy.backends.base import Array
from skdeploy.backends.image_quality import channels_first, levels_of, psnr_db, ssim
from skdeploy.backends.metrics import SMALLEST, Metrics, Outputs, compare_outputs, is_floating
from skdeploy.core.spec import ModelSpec, TensorSpec, Tolerance
from skdeploy.parity import limits
from skdeploy.parity.pictures import pictures_of_image
from skdeploy.parity.task import Task
from skdeploy.parity.worst_image import Pictures


class ImageToImage(Task):
    """Images, (N, C, H, W) or (N, H, W, C): floats normalised as the inputs are, or bytes. PSNR and SSIM of the worst image,
    and the 8-bit values that agree. Bytes have no error, cosine or SQNR: one that rounding moves is a whole grey level off.

    Where the inputs are arrays, nothing says what black and white are: the least and the largest value of the reference are.
    """

    help = "an image per image"
    limits = limits.IMAGES
    measures_integers = True

    def refusal(self, spec: ModelSpec) -> str:
        wrong = [each for each in spec.given if len(each.shape) != 4 or not (each.is_floating or each.dtype == "uint8")]
        return f"takes images, floating point or uint8 (N, C, H, W), but the network gives {wrong[0]}" if wrong else ""

    def measure(self, reference: Outputs, found: Outputs, tolerance: Tolerance, spec: ModelSpec, /) -> Metrics:
        del tolerance
        ratios, alike, same, values = [], [], 0, 0
        for name, expected in reference.items():
            output = output_named(name, spec)
            mean, std = _normalised(channels_first(expected, output), spec)
            for one, other in zip(expected, found[name], strict=True):  # one at a time: float64 of all is much memory
                before, after = (levels_of(channels_first(image[None], output), mean, std) for image in (one, other))
                ratios.append(float(psnr_db(before, after)[0]))
                alike.append(float(ssim(before, after)[0]))
                same += int(np.count_nonzero(np.rint(before) == np.rint(after)))
                values += before.size
        figures = {"psnr_db": min(ratios), "ssim": min(alike), "same_8bit": same / values}
        worst = int(np.argmin(ratios)) % len(next(iter(reference.values())))  # each output has a row of all images
        floats = {name: value for name, value in reference.items() if is_floating(value)}
        images = len(next(iter(reference.values())))
        metrics = compare_outputs(floats, found) if floats else Metrics.without_errors(images)
        return metrics.model_copy(update={"figures": figures, "figure_image": worst})

    def pictures(self, reference: Outputs, found: Outputs, image: int, spec: ModelSpec, /) -> Pictures | None:
        shown = []
        for name, expected in reference.items():
            output = output_named(name, spec)
            mean, std = _normalised(channels_first(expected, output), spec)
            before, after = (
                levels_of(channels_first(each[image, None], output), mean, std) for each in (expected, found[name])
            )
            shown.append((float(psnr_db(before, after)[0]), before[0], after[0]))
        _, before, after = min(shown, key=lambda one: one[0])
        return pictures_of_image(before, after)

    def violations(
        self, metrics: Metrics, tolerance: Tolerance, name_of: Callable[[int], str] | None = None, /
    ) -> tuple[str, ...]:
        problems = super().violations(metrics, tolerance, name_of)
        psnr, similar = metrics.figures["psnr_db"], metrics.figures["ssim"]
        if tolerance.min_psnr_db is not None and not psnr >= tolerance.min_psnr_db:
            problems += (f"PSNR {psnr:.1f} dB of the worst image, at least {tolerance.min_psnr_db:g} dB",)
        if tolerance.min_ssim is not None and not similar >= tolerance.min_ssim:
            problems += (f"SSIM {similar:.4f} of the worst image, at least {tolerance.min_ssim:g}",)
        return problems


def output_named(name: str, spec: ModelSpec) -> TensorSpec:
    return next(output for output in spec.given if output.name == name)


def _normalised(images: Array, spec: ModelSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std with which images are 0..1: the card's, or where the inputs are arrays, those that part their own range."""
    if spec.takes_images:
        return spec.preprocess.mean, spec.preprocess.std
    low, high = float(images.min()), float(images.max())
    scale, channels = 1 / max(high - low, SMALLEST), images.shape[1]
    return (-low * scale,) * channels, (scale,) * channels

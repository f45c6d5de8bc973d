"""The trained networks that INT8 is judged on: each with an FP32 graph, calibration images and test images."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.fashion_data import (
    REFERENCES,
    Floats,
    Labels,
    calibration_inputs,
    held_out,
    held_out_digits,
    rescale_channels,
)
from skdeploy.bundle.folder import load_bundle
from skdeploy.core.spec import ModelSpec
from skdeploy.zoo.cards import load_card
from tests.networks.denoising import noisy_pairs
from tests.networks.skff_unet import WEIGHTS

SEED: Final = 0
CALIBRATION: Final = 512
DENOISER_CARD: Final = WEIGHTS.parent / "denoiser.toml"
DENOISED: Final = 1000  # crops of photographs that it was not trained on
RESCALED_AT_MOST: Final = 1e-5  # 24-bit mantissas through some 30 layers; a power of two would be exact, these are not


@dataclass(frozen=True)
class Reference:
    """``images`` is what `skdeploy calibrate --calib` gets, ``inputs`` the same normalised, (N, C, H, W), for other tools.

    ``test`` are network inputs, and ``labels`` (N,) their classes; None for a network that gives images.
    """

    spec: ModelSpec
    model: Path
    images: Path
    inputs: Floats
    test: Floats
    labels: Labels | None


def export_fp32(network: str, folder: Path, *options: str) -> Path:
    """The file that every tool starts from."""
    command = [sys.executable, "-m", "skdeploy", "export", network, *options, "--target", "onnx", "-o", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return folder / "model.onnx"


def of_card(card: str, folder: Path, data: tuple[Floats, Labels]) -> Reference:
    """A network that comes with skdeploy, and its committed calibration images."""
    spec, _ = load_card(card)
    return Reference(spec, export_fp32(card, folder / card), REFERENCES[card], calibration_inputs(card), *data)


def rescaled(folder: Path, data: tuple[Floats, Labels], run: Callable[[Path, Floats], Floats]) -> Reference:
    """sknet-fashion with other channel scales; ``run`` computes logits, which must be the same."""
    original = of_card("sknet-fashion", folder, data)
    model = folder / "rescaled.onnx"
    onnx.save(rescale_channels(onnx.load(original.model), SEED), model)
    before, after = run(original.model, original.test), run(model, original.test)
    difference = float(np.abs(after - before).max() / np.abs(before).max())
    if difference > RESCALED_AT_MOST:
        raise SystemExit(f"the rescaled copy is another function: {difference:.1e} of the largest logit apart")
    return Reference(original.spec, model, original.images, original.inputs, original.test, original.labels)


def denoiser(folder: Path) -> Reference:
    """The network of tools/train_denoiser.py: a U-Net with selective fusion of scales, on noisy crops of photographs."""
    model = export_fp32(
        "tests.networks.skff_unet:SKFFUNet",
        folder / "denoiser",
        "--card",
        str(DENOISER_CARD),
        "--weights",
        str(WEIGHTS),
    )
    spec = load_bundle(model.parent).manifest.model
    noisy, _ = noisy_pairs(CALIBRATION, 9, held_out=False)
    images = folder / "denoiser.npz"
    np.savez(images, images=noisy)
    return Reference(spec, model, images, planes(noisy, spec), planes(noisy_pairs(DENOISED)[0], spec), None)


def planes(images: NDArray[np.uint8], spec: ModelSpec) -> Floats:
    """Images (N, H, W, C) as the network takes them, (N, C, H, W)."""
    mean, std = (np.asarray(values, np.float32) for values in (spec.preprocess.mean, spec.preprocess.std))
    scaled = (images.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)


def references(
    run: Callable[[Path, Floats], Floats], fashion: Path | None, digits: Path | None
) -> dict[str, Callable[[Path], Reference]]:
    """Every reference by the name of its round, made in a folder when it is asked for."""
    return {
        "original": lambda folder: of_card("sknet-fashion", folder, held_out(fashion)),
        "rescaled": lambda folder: rescaled(folder, held_out(fashion), run),
        "skresnet-digits": lambda folder: of_card("skresnet-digits", folder, held_out_digits(digits)),
        "denoiser": denoiser,
    }

"""From the bytes of an image file to logits: the packaged path against two independent ones, for every kind of image.

The first is timm's evaluation pipeline, written out as timm 1.0 has it: torchvision's Resize of the shorter side on a PIL image,
CenterCrop, ToTensor (divide by 255), Normalize, in float32, and the network in PyTorch. The second resizes with torch's own
``interpolate``, in float64, and never touches Pillow's resize.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import nn

from skdeploy.backends.onnxruntime import open_session
from skdeploy.checkpoints.load import load_network
from skdeploy.quant.dataset import open_dataset
from skdeploy.quant.feeds import feeds_of
from skdeploy.spec import ModelSpec, Precision
from tests.parity.faulty import bundle_of, spec_of

Logits = NDArray[np.float64]
Change = Callable[[Image.Image], Image.Image]

# Logits of equal pixels: float32 sums in another order, a dozen layers deep (models/README.md), relative to the largest.
SAME_PIXELS = 1e-4

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """For tiny networks, whose work is less than waking threads takes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    bundle = bundle_of(Precision.FP32)
    return load_network(spec_of(bundle), bundle / "weights.safetensors")


def with_filter(interpolation: str) -> ModelSpec:
    spec = spec_of(bundle_of(Precision.FP32))
    return spec.model_copy(update={"preprocess": spec.preprocess.model_copy(update={"interpolation": interpolation})})


def picture(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """A random photograph: colours that change slowly, edges and noise, and another one in each corner."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = smooth + generator.integers(-12, 13, smooth.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def packaged(file: Path, spec: ModelSpec, *, embed: bool = False) -> Logits:
    """What a user of the bundle gets."""
    with open_session(bundle_of(Precision.FP32, embed=embed) / "model.onnx") as session:
        crops = open_dataset(file).load(spec)
        return session.run(feeds_of(crops, spec, session.inputs))["logits"].astype(np.float64)


def as_timm(file: Path, spec: ModelSpec, network: nn.Module, change: Change = lambda image: image) -> Logits:
    """The same image, the way that timm evaluates."""
    size, preprocess = spec.input, spec.preprocess
    with Image.open(io.BytesIO(file.read_bytes())) as opened:
        image = change(opened.convert("RGB"))
    # torchvision's Resize(int): the shorter side becomes ``resize``; the longer is truncated, not rounded
    width, height = image.size
    if width <= height:
        wide, tall = preprocess.resize, int(preprocess.resize * height / width)
    else:
        wide, tall = int(preprocess.resize * width / height), preprocess.resize
    image = image.resize((wide, tall), FILTERS[preprocess.interpolation])
    top, left = round((tall - size.height) / 2.0), round((wide - size.width) / 2.0)
    image = image.crop((left, top, left + size.width, top + size.height))
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    return logits_of(network, ((tensor - mean) / std)[None])


def as_torch(file: Path, spec: ModelSpec, network: nn.Module) -> Logits:
    """The same image, resized by torch in float64."""
    size, preprocess = spec.input, spec.preprocess
    with Image.open(file) as opened:
        planes = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)[None].double()
    tall, wide = (round(side * preprocess.resize / min(planes.shape[2:])) for side in planes.shape[2:])
    planes = nn.functional.interpolate(planes, (tall, wide), mode=preprocess.interpolation, antialias=True)
    top, left = round((tall - size.height) / 2), round((wide - size.width) / 2)
    planes = planes[:, :, top : top + size.height, left : left + size.width].clamp(0, 255).div(255)
    mean, std = (torch.tensor(values)[:, None, None].double() for values in (preprocess.mean, preprocess.std))
    return logits_of(network, ((planes - mean) / std).float())


def logits_of(network: nn.Module, inputs: torch.Tensor) -> Logits:
    with torch.no_grad():
        found: torch.Tensor = network(inputs)
    return found.numpy().astype(np.float64)


def apart(found: Logits, expected: Logits) -> float:
    """The largest difference, relative to the largest logit."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


# ----- resize, crop and normalisation


# The card resizes to 36 and crops 32. Longer sides come out whole, below and above a half: 36 * 60 / 40 = 54, 36 * 67 / 50 = 48.24,
# and sides of both parities are cropped: (54 - 32) / 2 = 11, (47 - 32) / 2 = 7.5.
SIZES = [(60, 40), (40, 60), (50, 67), (67, 50), (36, 36), (36, 47), (47, 36), (20, 30), (200, 150)]


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", SIZES)
def test_the_packaged_path_is_timms(
    size: tuple[int, int], interpolation: str, network: nn.Module, tmp_path: Path
) -> None:
    file = saved(picture(*size), tmp_path / "x.png")
    spec = with_filter(interpolation)
    assert apart(packaged(file, spec), as_timm(file, spec, network)) < SAME_PIXELS


# Where the longer side's exact size has a fraction of a half or more, torchvision truncates and we round (as OpenCV-made sets
# and timm's own tensor path do): the image is then resized by one pixel more in hundreds.
@pytest.mark.parametrize("size", [(50, 68), (91, 47)])
def test_a_longer_side_that_is_rounded_up_is_a_pixel_longer_than_timms(
    size: tuple[int, int], network: nn.Module, tmp_path: Path
) -> None:
    file = saved(picture(*size), tmp_path / "x.png")
    spec = with_filter("bilinear")
    longer = 36 * max(size) / min(size)
    assert longer % 1 >= 0.5
    difference = apart(packaged(file, spec), as_timm(file, spec, network))
    assert difference > SAME_PIXELS
    assert apart(packaged(file, spec), as_torch(file, spec, network)) < 0.1

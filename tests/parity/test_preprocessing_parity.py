"""From the bytes of an image file to logits: the packaged path against two independent ones, for every kind of image.

The first is timm's evaluation pipeline, written out as timm 1.0 has it: torchvision's Resize of a PIL image's shorter side,
CenterCrop, ToTensor (divide by 255), Normalize, in float32, and the network in PyTorch. The second resizes with torch's own
``interpolate``, in float64, and never touches Pillow's resize.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from skdeploy.backends.onnxruntime import open_session
from skdeploy.checkpoints.load import load_network
from skdeploy.core.spec import ModelSpec, Precision
from skdeploy.images.dataset import open_dataset
from skdeploy.images.feeds import feeds_of
from tests.blame.faulty import bundle_of, spec_of

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


pytestmark = pytest.mark.usefixtures("one_thread")


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


def as_torch(file: Path, spec: ModelSpec, network: nn.Module, *, antialias: bool = True, noise: float = 0.0) -> Logits:
    """The same image, resized by torch in float64; ``noise``: the deviation of noise to add, in 8-bit levels."""
    size, preprocess = spec.input, spec.preprocess
    with Image.open(file) as opened:
        planes = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)[None].double()
    tall, wide = (int(side * preprocess.resize / min(planes.shape[2:])) for side in planes.shape[2:])
    if preprocess.interpolation == "nearest":
        planes = nn.functional.interpolate(planes, (tall, wide), mode="nearest-exact")
    else:
        planes = nn.functional.interpolate(planes, (tall, wide), mode=preprocess.interpolation, antialias=antialias)
    top, left = round((tall - size.height) / 2), round((wide - size.width) / 2)
    planes = planes[:, :, top : top + size.height, left : left + size.width].clamp(0, 255)
    planes = planes + noise * torch.randn(planes.shape, generator=torch.Generator().manual_seed(0), dtype=planes.dtype)
    mean, std = (torch.tensor(values)[:, None, None].double() for values in (preprocess.mean, preprocess.std))
    return logits_of(network, ((planes / 255 - mean) / std).float())


def effect_of_rounding(file: Path, spec: ModelSpec, network: nn.Module) -> float:
    """How far logits move by as much noise as Pillow's arithmetic has, four times over.

    It rounds to 8 bits after each of its two passes: an error uniform in a level each time, of variance 1/12. Weights sum to
    one, so the second pass does not enlarge the first one's. Four times: it is another draw of that noise, and the largest of
    five logits.
    """
    exact = as_torch(file, spec, network)
    return 4 * apart(as_torch(file, spec, network, noise=(2 / 12) ** 0.5), exact)


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


# The card resizes to 36 and crops 32. Longer sides are whole, such as 54, or have a fraction below a half, such as 48.24. What
# is cropped on each side is whole, or a half that rounds to even: (54 - 32) / 2 = 11, (47 - 32) / 2 = 7.5, (49 - 32) / 2 = 8.5.
SIZES = [
    (60, 40),
    (40, 60),
    (50, 67),
    (67, 50),
    (36, 36),
    (36, 47),
    (47, 36),
    (36, 49),
    (20, 30),
    (200, 150),
    (300, 40),
]
# Nearest: where a pixel's centre lies on the edge of two, either is right. None does at these sizes.
NEAREST = [size for size in SIZES if all((index + 0.5) * min(size) / 36 % 1 for index in range(36))]


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [*SIZES, (91, 47), (50, 68)])
def test_the_packaged_path_is_timms(
    size: tuple[int, int], interpolation: str, network: nn.Module, tmp_path: Path
) -> None:
    file = saved(picture(*size), tmp_path / "x.png")
    spec = with_filter(interpolation)
    assert apart(packaged(file, spec), as_timm(file, spec, network)) < SAME_PIXELS


@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp", "tif"])
def test_the_packaged_path_is_timms_for_every_format(suffix: str, network: nn.Module, tmp_path: Path) -> None:
    file = saved(picture(60, 40), tmp_path / f"x.{suffix}")
    spec = with_filter("bilinear")
    assert apart(packaged(file, spec), as_timm(file, spec, network)) < SAME_PIXELS


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_wrong_filter_is_far_off(interpolation: str, network: nn.Module, tmp_path: Path) -> None:
    file = saved(picture(60, 90), tmp_path / "x.png")
    other = {"bilinear": "bicubic", "bicubic": "lanczos"}[interpolation]
    found = packaged(file, with_filter(interpolation))
    assert apart(found, as_timm(file, with_filter(other), network)) > 30 * SAME_PIXELS


@pytest.mark.parametrize(  # torch has no Lanczos
    ("interpolation", "size"),
    [
        *(("bilinear", size) for size in SIZES),
        *(("bicubic", size) for size in SIZES),
        *(("nearest", size) for size in NEAREST),
    ],
)
def test_the_packaged_path_is_that_of_torchs_own_resize(
    interpolation: str, size: tuple[int, int], network: nn.Module, tmp_path: Path
) -> None:
    file = saved(picture(*size), tmp_path / "x.png")
    spec = with_filter(interpolation)
    found, expected = packaged(file, spec), as_torch(file, spec, network)
    if interpolation == "nearest" or min(size) == spec.preprocess.resize:
        assert apart(found, expected) < SAME_PIXELS  # nothing is computed, so nothing is rounded
        return
    allowed = effect_of_rounding(file, spec, network)
    assert apart(found, expected) < allowed
    if min(size) > 2 * spec.preprocess.resize:  # without antialiasing, what torch does by default
        assert apart(as_torch(file, spec, network, antialias=False), expected) > allowed


@pytest.mark.parametrize("interpolation", FILTERS)
def test_normalisation_inside_the_graph_gives_the_same_logits(interpolation: str, tmp_path: Path) -> None:
    file = saved(picture(60, 90), tmp_path / "x.png")
    spec = with_filter(interpolation)
    with open_session(bundle_of(Precision.FP32, embed=True) / "model.onnx") as session:
        assert session.inputs[0].dtype == "uint8"
    # One multiply-add in float32 on both sides, then the same graph: a last bit at most.
    assert apart(packaged(file, spec, embed=True), packaged(file, spec)) < 1e-6


def test_normalisation_inside_the_graph_is_timms(network: nn.Module, tmp_path: Path) -> None:
    file = saved(picture(60, 90), tmp_path / "x.png")
    spec = with_filter("bilinear")
    assert apart(packaged(file, spec, embed=True), as_timm(file, spec, network)) < SAME_PIXELS


# ----- orientation, channels, kinds of images

TURNED = {  # what shows the stored rows upright, EXIF 2.32, tag 0x0112, with Pillow's turns (anticlockwise)
    1: [],
    2: [Image.Transpose.FLIP_LEFT_RIGHT],
    3: [Image.Transpose.ROTATE_180],
    4: [Image.Transpose.FLIP_TOP_BOTTOM],
    5: [Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90],
    6: [Image.Transpose.ROTATE_270],
    7: [Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_270],
    8: [Image.Transpose.ROTATE_90],
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", TURNED)
def test_orientation_is_ignored_as_timm_does_or_applied(
    orientation: int, suffix: str, network: nn.Module, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(picture(60, 44), tmp_path / f"x.{suffix}", exif=exif)

    def upright(image: Image.Image) -> Image.Image:
        for turn in TURNED[orientation]:
            image = image.transpose(turn)
        return image

    spec = with_filter("bilinear")
    ignored = packaged(file, spec)
    assert apart(ignored, as_timm(file, spec, network)) < SAME_PIXELS
    applied = packaged(
        file, spec.model_copy(update={"preprocess": spec.preprocess.model_copy(update={"exif": "apply"})})
    )
    assert apart(applied, as_timm(file, spec, network, upright)) < SAME_PIXELS
    if orientation != 1:
        assert apart(applied, ignored) > 30 * SAME_PIXELS


@pytest.mark.parametrize("orientation", TURNED)
def test_a_tiff_is_turned_once(orientation: int, network: nn.Module, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture(60, 44)
    upright = image
    for turn in TURNED[orientation]:
        upright = upright.transpose(turn)
    spec = with_filter("bilinear")
    # Pillow turns a TIFF itself, when it loads it; PNG says nothing of orientation here.
    found = packaged(saved(image, tmp_path / "x.tif", exif=exif), spec)
    assert apart(found, as_timm(saved(upright, tmp_path / "y.png"), spec, network)) < SAME_PIXELS


def test_blue_and_red_are_not_swapped(network: nn.Module, tmp_path: Path) -> None:
    file = saved(picture(60, 40), tmp_path / "x.png")
    spec = with_filter("bilinear")

    def swapped(image: Image.Image) -> Image.Image:
        return Image.merge("RGB", image.split()[::-1])

    found = packaged(file, spec)
    assert apart(found, as_timm(file, spec, network)) < SAME_PIXELS
    assert apart(found, as_timm(file, spec, network, swapped)) > 30 * SAME_PIXELS


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "1", "CMYK"])
def test_other_kinds_of_images_are_timms(mode: str, network: nn.Module, tmp_path: Path) -> None:
    file = saved(picture(60, 40).convert(mode), tmp_path / ("x.tif" if mode == "CMYK" else "x.png"))
    with Image.open(file) as image:
        assert image.mode == mode
    spec = with_filter("bilinear")
    assert apart(packaged(file, spec), as_timm(file, spec, network)) < SAME_PIXELS


def test_a_palette_is_looked_up_before_the_resize(network: nn.Module, tmp_path: Path) -> None:
    image = picture(60, 40).quantize(16)
    file = saved(image, tmp_path / "x.png")
    spec = with_filter("bilinear")
    indices = Image.fromarray(np.asarray(image) * 16).convert("RGB")
    found = packaged(file, spec)
    assert apart(found, as_timm(file, spec, network)) < SAME_PIXELS
    assert apart(found, as_timm(file, spec, network, lambda _: indices)) > 30 * SAME_PIXELS

"""Images, from wherever the user has them, to network inputs: the preprocessing of the card, the same wherever it is needed."""

from __future__ import annotations

import hashlib
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from skdeploy.bundle.artifact import digest_file
from skdeploy.errors import DependencyError, IntegrityError, UsageError
from skdeploy.spec import InputSpec, ModelSpec, Preprocess

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]
Inputs = NDArray[np.float32]

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")

KINDS: Final = "give a folder of images that you may read, an .npz or an .npy file"
REMOVE: Final = "remove it, or give other images with --images"

# Photographs that come inside scikit-image's wheel, all of scenes: no drawings, masks or test patterns.
PHOTOGRAPHS: Final = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png",
    "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg",
    "rocket.jpg",
)  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """Images in a fixed order: files, or one uint8 array (N, H, W, C). ``name`` is what a report calls them."""

    name: str
    files: tuple[Path, ...] = ()
    pixels: Pixels | None = None
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.files) if self.pixels is None else len(self.pixels)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the images in order: what was measured, for a report and for resume."""
        if self.pixels is not None:
            return hashlib.sha256(repr(self.pixels.shape).encode() + self.pixels.tobytes()).hexdigest()
        try:
            return hashlib.sha256("".join(digest_file(file) for file in self.files).encode()).hexdigest()
        except IntegrityError as error:
            raise UsageError(f"an image is not readable: {error.message}", advice=REMOVE) from error

    def crops(self, spec: ModelSpec) -> Iterator[Pixels]:
        """Each image resized and cropped to the network's input: uint8 (H, W, C). Raises UsageError naming the image."""
        from PIL import Image

        for index in range(len(self)):
            if self.pixels is None:
                yield _crop(_open(self.files[index]), spec.preprocess, spec.input)
            else:
                array = self.pixels[index]
                image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
                yield _crop(image, spec.preprocess, spec.input)

    def load(self, spec: ModelSpec) -> Pixels:
        """All crops: uint8 (N, H, W, C)."""
        return np.stack(list(self.crops(spec)))


def normalise(pixels: Pixels, preprocess: Preprocess) -> Inputs:
    """Network inputs from crops: uint8 (N, H, W, C) -> float32 (N, C, H, W), (x / 255 - mean) / std."""
    scale, offset = affine(preprocess)
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)
    return planes * scale[None, :, None, None] + offset[None, :, None, None]


def affine(preprocess: Preprocess) -> tuple[Inputs, Inputs]:
    """The normalisation of 0..255 pixels as one multiply-add per channel: float32 (C,), (C,)."""
    mean, std = np.asarray(preprocess.mean), np.asarray(preprocess.std)
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def open_dataset(source: Path, limit: int | None = None) -> Dataset:
    """A folder of images (flat or in class folders), an .npz with ``images`` or an .npy, of raw uint8 pixels (N, H, W[, C]).

    ``limit`` takes the first so many, in the order of the sorted names. Raises UsageError: nothing there, no image, not uint8.
    """
    _check_limit(limit)
    try:
        mode = source.stat().st_mode
    except OSError as error:
        raise UsageError(f"no images at {source}: {error.strerror}", advice=KINDS) from error
    if stat.S_ISDIR(mode):
        try:
            next(source.iterdir(), None)  # rglob passes over a folder that it may not list
        except OSError as error:
            raise UsageError(f"cannot list the images in {source}: {error.strerror}", advice=KINDS) from error
        files = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not files:
            raise UsageError(f"no images in {source}", advice=f"looked for {', '.join(SUFFIXES)}")
        return Dataset(source.name, files=tuple(files[:limit]))
    if source.suffix in (".npz", ".npy"):
        return _open_array(source, limit)
    if source.suffix.lower() in SUFFIXES:
        return Dataset(source.name, files=(source,))
    raise UsageError(f"{source} is not an image, an .npz or an .npy file", advice=KINDS)


def default_dataset(spec: ModelSpec, limit: int) -> Dataset:
    """The card's own parity images: ``photographs``, or a file below ``calibration/``."""
    if spec.parity_images == "photographs":
        return photographs(limit)
    from skdeploy.zoo.cards import packaged

    for folder in (Path("calibration"), packaged("calibration")):
        if (folder / spec.parity_images).is_file():
            return open_dataset(folder / spec.parity_images, limit)
    raise UsageError(f"the card {spec.name} names images that are not there: calibration/{spec.parity_images}")


def photographs(limit: int | None = None) -> Dataset:
    """The photographs in scikit-image's wheel; the package itself is not imported. Raises DependencyError, UsageError."""
    _check_limit(limit)
    found = find_spec("skimage")
    if found is None or found.origin is None:
        raise DependencyError(
            "scikit-image, whose photographs are the default images, is not installed", advice="give --images"
        )
    folder = Path(found.origin).parent / "data"
    files = tuple(folder / name for name in PHOTOGRAPHS[:limit])
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise DependencyError(f"this scikit-image lacks the photographs {', '.join(absent)}", advice="give --images")
    return Dataset("photographs", files=files)


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise UsageError(f"{limit} images: at least 1", advice="give --num-images 1 or more")


def _open_array(source: Path, limit: int | None) -> Dataset:
    try:
        with source.open("rb") as file:
            content: Any = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                images, labels = content, None
            else:
                images, labels = content["images"], content.get("labels")
    except KeyError as error:
        raise UsageError(
            f"{source} has no array named 'images', only {sorted(content)}",
            advice="save with np.savez(file, images=...)",
        ) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"cannot read {source}: {error}", advice="it is truncated or not a NumPy file") from error
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not len(images):
        raise UsageError(
            f"{source} holds {images.dtype} of shape {images.shape}",
            advice="images are raw uint8 pixels, (N, H, W), (N, H, W, 1) or (N, H, W, 3), not normalised",
        )
    if labels is not None and labels.shape != (len(images),):
        raise UsageError(
            f"{source} holds {len(images)} images and labels of shape {labels.shape}", advice="one label an image, (N,)"
        )
    return Dataset(source.name, pixels=images[:limit], labels=None if labels is None else labels[:limit])


def _open(file: Path) -> Image.Image:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"cannot read the image {file}: {error}", advice=REMOVE) from error
    if upright.mode.startswith(("I", "F")):
        raise UsageError(
            f"the image {file} has more than 8 bits a channel (mode {upright.mode}), and how to scale them is not recorded",
            advice="convert it to 8 bits, as it was for the training",
        )
    return upright


def _crop(image: Image.Image, preprocess: Preprocess, size: InputSpec) -> Pixels:
    """Shorter side to ``resize``, centre crop to (height, width): uint8 (H, W, C)."""
    from PIL import Image

    mode = "L" if size.channels == 1 else "RGB"
    image = image.convert(mode)
    shorter = min(image.size)
    if shorter != preprocess.resize:
        scale = preprocess.resize / shorter
        resized = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(resized, Image.Resampling[preprocess.interpolation.upper()])
    left, top = round((image.width - size.width) / 2), round((image.height - size.height) / 2)
    image = image.crop((left, top, left + size.width, top + size.height))
    return np.asarray(image, dtype=np.uint8).reshape(size.height, size.width, size.channels)

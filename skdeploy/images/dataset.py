"""Images, from wherever the user has them, to network inputs: the preprocessing of the card, the same wherever it is needed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from skdeploy.core.errors import DependencyError, IntegrityError, UsageError
from skdeploy.core.files import digest_file
from skdeploy.core.packages import EXTRAS, install_command, installed
from skdeploy.core.spec import ModelSpec, Preprocess, SampleWord
from skdeploy.images import samples
from skdeploy.images.arrays import Labels, checked_labels, read_arrays, read_planes
from skdeploy.images.decoding import GREY_OR_RGB, REMOVE, SUFFIXES, Crop, ImageError, crop_array, crop_file, open_image
from skdeploy.images.decoding import Pixels as Pixels
from skdeploy.images.decoding import printable as printable
from skdeploy.images.folders import KINDS, ImageFolder, read_folder
from skdeploy.images.lists import read_list

Chosen = Literal["", "images", "calib", "data", "pairs", "card", "photographs", "random"]
Inputs = NDArray[np.float32]

EVALUATION: Final = "evaluation.npz"  # the labelled images of a folder without image files, where accuracy is measured
# Photographs that come inside scikit-image's wheel, all of scenes: no drawings, masks or test patterns.
PHOTOGRAPHS: Final = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png",
    "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg",
    "rocket.jpg",
)  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """Images in a fixed order: files, or one uint8 array (N, H, W, C). ``name`` is what a report calls them.

    Of a network that does not take images, its samples: files, or one structured array (N,), see ``samples.py``.

    ``labels`` are class numbers, (N,). ``classes``, if any, names them: label i is ``classes[i]``; where the names are those of
    folders, their order is that of the sorted names, not yet the network's (``labels.as_the_network_counts``). ``unlabelled``
    says why a folder's images have no labels, and ``notes`` what a reader of any figure must know of the images. ``root`` is
    the folder that file names are relative to; ``numbers``, (N,), the places that chosen images have in the array they come
    from. ``random``: noise, no images. ``chosen``: why parity is measured on these, a key of
    ``parity.report.CHOSEN``. ``word``: what one of them is called.
    """

    name: str
    files: tuple[Path, ...] = ()
    pixels: Pixels | None = None
    labels: Labels | None = None
    classes: tuple[str, ...] = ()
    root: Path | None = None
    numbers: NDArray[np.int64] | None = None
    random: bool = False
    unlabelled: str = ""
    notes: tuple[str, ...] = ()
    chosen: Chosen = ""
    word: SampleWord = "image"

    def __len__(self) -> int:
        return len(self.files) if self.pixels is None else len(self.pixels)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the images in order: what was measured, for a report and for resume."""
        if self.pixels is not None:
            return hashlib.sha256(repr(self.pixels.shape).encode() + self.pixels.tobytes()).hexdigest()
        return joined_digest(self.file_digests)

    @cached_property
    def file_digests(self) -> tuple[str, ...]:
        """SHA-256 of each file. Raises UsageError naming one that cannot be read."""
        try:
            return tuple(digest_file(file) for file in self.files)
        except IntegrityError as error:
            raise UsageError(f"cannot read an image: {error.message}", advice=REMOVE) from error

    def name_of(self, index: int) -> str:
        """Name an image for messages and reports: its path below ``root``, or its place in the array. Printable."""
        if self.pixels is not None:
            what = "images" if self.pixels.dtype.names is None else "samples"
            return f"{what}[{index if self.numbers is None else self.numbers[index]}]"
        file = self.files[index]
        return printable(str(file.relative_to(self.root) if self.root and file.is_relative_to(self.root) else file))

    def take(self, indices: Sequence[int]) -> Dataset:
        """These images, in this order, under the same name."""
        chosen = np.asarray(indices, np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        if self.pixels is None:
            return replace(self, files=tuple(self.files[index] for index in indices), labels=labels)
        numbers = chosen if self.numbers is None else self.numbers[chosen]
        return replace(self, pixels=self.pixels[chosen], labels=labels, numbers=numbers)

    def spread(self, count: int, spec: ModelSpec) -> Dataset:
        """At most ``count`` images, evenly spread: folders are sorted by class. Files that cannot be read are passed over.

        Raises the ImageError of the first where none can be.
        """
        chosen: list[int] = []
        count = min(count, len(self))
        for step in range(count):
            start, end = (at * len(self) // count for at in (step, step + 1))
            readable = (index for index in range(start, end) if isinstance(self.crop_or_error(index, spec), Crop))
            chosen += islice(readable, 1)
        if not chosen:
            self.crop(0, spec)
        return self.take(chosen)

    def crop(self, index: int, spec: ModelSpec) -> Crop:
        """One image resized and cropped to the network's input, or one sample. Raises ImageError, a UsageError, naming it."""
        if self.pixels is not None:
            row = np.asarray(self.pixels[index])
            return (
                samples.checked(row, self.name_of(index))
                if row.dtype.names
                else crop_array(row, spec, self.name_of(index))
            )
        file = self.files[index]
        if not spec.takes_images:
            return samples.read_sample(file, spec)
        if file.suffix.lower() in samples.SUFFIXES:
            try:
                return crop_array(read_planes(file, spec.input.channels), spec, str(file))
            except ImageError:
                raise
            except UsageError as error:
                raise ImageError(error.message, error.message, advice=error.advice) from error
        return crop_file(file, spec)

    def crop_or_error(self, index: int, spec: ModelSpec) -> Crop | ImageError:
        """The crop of an image, or why it cannot be read."""
        try:
            return self.crop(index, spec)
        except ImageError as error:
            return error

    def crops(self, spec: ModelSpec) -> Iterator[Pixels]:
        """Each image resized and cropped to the network's input: uint8 (H, W, C), or each sample. Raises UsageError naming
        it.
        """
        for index in range(len(self)):
            yield self.crop(index, spec).pixels

    def load(self, spec: ModelSpec) -> Pixels:
        """All crops, uint8 (N, H, W, C), or samples, (N,)."""
        return np.stack(list(self.crops(spec)))


def joined_digest(files: Iterable[str]) -> str:
    """The digest of a data set from those of its files, in order."""
    return hashlib.sha256("".join(files).encode()).hexdigest()


def normalise(pixels: Pixels, preprocess: Preprocess) -> Inputs:
    """Network inputs from crops: uint8 (N, H, W, C) -> float32 (N, C, H, W), (x / 255 - mean) / std."""
    scale, offset = affine(preprocess)
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)
    return planes * scale[None, :, None, None] + offset[None, :, None, None]


def affine(preprocess: Preprocess) -> tuple[Inputs, Inputs]:
    """The normalisation of 0..255 pixels as one multiply-add per channel: float32 (C,), (C,)."""
    mean, std = np.asarray(preprocess.mean), np.asarray(preprocess.std)
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def open_dataset(
    source: Path, limit: int | None = None, *, archive: str = "calibration.npz", spec: ModelSpec | None = None
) -> Dataset:
    """Images, or other samples, at a path, none of it decoded yet. Without ``spec``, images of 1 or 3 channels:

    * a folder of images, flat or deep. Where each lies below one of at least two folders right below it, these are the classes
      (``folders.py``). A folder without images but with a file named ``archive`` means that file;
    * an .npz with ``images`` (and ``labels``) or an .npy, of raw uint8 pixels (N, H, W[, C]);
    * a .txt or .csv list, one ``path`` or ``path,label`` a line: ``lists.py``;
    * one image.

    For a network that does not take images, or images of more channels, a folder of .npz or .npy files, one sample each; or
    one such file with all samples stacked, (N, ...), by the inputs' names.

    ``limit`` takes that many, the first ones, in the order of the sorted names. Raises UsageError: nothing there, no image, not
    uint8; of samples also other names, ranks, types or sizes.
    """
    check_count(limit, "--num-images")
    in_folder = stat.S_ISDIR(require_there(source).st_mode)
    channels = spec.input.channels if spec is not None and spec.takes_images else None
    if spec is not None and channels not in GREY_OR_RGB:
        dataset = _open_arrays(source, archive, spec, in_folder=in_folder)
    elif in_folder:
        dataset = _open_folder(source, archive)
    elif source.suffix.lower() in (".npz", ".npy"):
        images, labels = read_arrays(source)
        dataset = Dataset(printable(source.name), pixels=images, labels=labels)
    elif source.suffix.lower() in SUFFIXES:
        dataset = Dataset(printable(source.name), files=(source,), root=source.parent)
    elif source.suffix.lower() in (".txt", ".csv"):
        files, labels = read_list(source)
        dataset = Dataset(printable(source.name), files=files, labels=labels, root=source.parent)
    else:
        raise UsageError(f"{source} is not an image, an .npz, an .npy or a list of images (.txt, .csv)", advice=KINDS)
    if spec is not None:
        dataset = replace(dataset, word=spec.sample_word)
    return dataset if limit is None or limit >= len(dataset) else dataset.take(range(limit))


def require_there(source: Path) -> os.stat_result:
    """Raises UsageError where there is nothing: what a job that reads the images late may ask first."""
    try:
        return source.stat()
    except OSError as error:
        raise UsageError(f"no images at {source}: {error.strerror}", advice=KINDS) from error


def default_dataset(spec: ModelSpec, limit: int) -> Dataset:
    """The card's own parity images: ``photographs``, or a file below ``calibration/``. Noise where no photograph fits."""
    check_count(limit, "--num-images")
    if spec.parity_images == "photographs":
        fitting = _fitting_photographs(spec)
        if fitting:
            return replace(fitting.take(range(min(limit, len(fitting)))), chosen="photographs")
        from skdeploy.images.selection import random_images

        return replace(random_images(spec, min(limit, len(PHOTOGRAPHS)), 0), chosen="random")
    from skdeploy.core.packaged import packaged

    for folder in (Path("calibration"), packaged("calibration")):
        if (folder / spec.parity_images).is_file():
            return replace(open_dataset(folder / spec.parity_images, limit, spec=spec), chosen="card")
    raise UsageError(f"the card {spec.name} names images that do not exist: calibration/{spec.parity_images}")


def _fitting_photographs(spec: ModelSpec) -> Dataset | None:
    """The photographs that the network can take: where images are not resized, those that are large enough."""
    if not spec.takes_images or spec.input.channels not in GREY_OR_RGB:
        return None
    every = photographs()
    if spec.preprocess.resize is not None:
        return every
    large = []
    for place, file in enumerate(every.files):
        with open_image(file) as image:
            if image.height >= spec.input.height and image.width >= spec.input.width:
                large.append(place)
    return every.take(large)


def photographs(limit: int | None = None) -> Dataset:
    """The photographs in scikit-image's wheel; the package itself is not imported. Raises DependencyError, UsageError."""
    check_count(limit, "--num-images")
    found = find_spec("skimage") if installed("skimage") else None
    if found is None or found.origin is None:
        raise DependencyError(
            "scikit-image is not installed; its photographs are the default images",
            advice=f"give --images, or: {install_command(EXTRAS)}",
        )
    folder = Path(found.origin).parent / "data"
    files = tuple(folder / name for name in PHOTOGRAPHS[:limit])
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise DependencyError(
            f"this scikit-image does not have the photographs {', '.join(absent)}", advice="give --images"
        )
    return Dataset("photographs", files=files, root=folder)


def check_count(count: int | None, option: str) -> None:
    """Raises UsageError for a number of images below 1, naming the option that gave it."""
    if count is not None and count < 1:
        raise UsageError(f"{count} images: give at least 1", advice=f"set {option} to 1 or more")


def _open_arrays(source: Path, archive: str, spec: ModelSpec, *, in_folder: bool) -> Dataset:
    """Samples that no image file holds: a folder with a file for each, or one file of them all."""
    if in_folder:
        found = read_folder(source, samples.SUFFIXES)
        if found.files == (source / archive,):
            return _open_arrays(source / archive, archive, spec, in_folder=False)
        if not found.files:
            raise UsageError(f"no .npz or .npy files in {source}", advice=f"{spec.name} takes {spec.shown_inputs}")
        return _of_files(source, found)
    if source.suffix.lower() in (".txt", ".csv"):
        files, labels = read_list(source)
        return Dataset(printable(source.name), files=files, labels=labels, root=source.parent)
    if source.suffix.lower() not in samples.SUFFIXES:
        raise UsageError(
            f"{source} is not an .npz, an .npy or a list of them (.txt, .csv)",
            advice=f"{spec.name} takes {spec.shown_inputs}: give arrays, in one file or a folder of files",
        )
    if spec.takes_images:
        images, labels = read_arrays(source, (spec.input.channels,))
        return Dataset(printable(source.name), pixels=images, labels=labels)
    rows, given = samples.read_stack(source, spec)
    labels = None if given is None else checked_labels(source, given, len(rows))
    return Dataset(printable(source.name), pixels=rows, labels=labels)


def _open_folder(source: Path, archive: str) -> Dataset:
    found = read_folder(source)
    packed = source / archive
    if packed.is_file():
        if found.files:
            raise UsageError(
                f"{source} holds both {archive} and {len(found.files)} image files",
                advice=f"give {packed} to use the archive, or move it away",
            )
        return open_dataset(packed)
    if not found.files:
        more = f"; {found.left_out}" if found.left_out else ""
        raise UsageError(f"no images in {source}{more}", advice=f"looked for {', '.join(SUFFIXES)} and {archive}")
    return _of_files(source, found)


def _of_files(source: Path, found: ImageFolder) -> Dataset:
    return Dataset(
        printable(source.name),
        files=found.files,
        labels=np.array(found.labels, np.int64) if found.classes else None,
        classes=tuple(map(printable, found.classes)),
        root=source,
        unlabelled=found.unlabelled,
        notes=(found.left_out,) if found.left_out else (),
    )

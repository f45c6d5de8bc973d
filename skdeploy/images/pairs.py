"""Inputs with their ground truth: for each image the image that should come out, a mask of classes, or an array.

Three layouts, as people have them:

* two folders, one of inputs and one of targets, whose files have the same names but for the suffix: ``input/001.png`` and
  ``target/001.jpg``. ``INPUTS`` and ``TARGETS`` are the names of such folders. They may lie deeper, as GoPro's do:
  ``GOPR0384/blur/7.png`` and ``GOPR0384/sharp/7.png``;
* an .npz with ``images`` and ``targets``, one row each;
* for a network that takes arrays, the same with .npy or .npz files, or an .npz with the inputs' names and ``targets``.

An image is never resized on its way to a network that restores images, since that would take away the noise or blur which the
network is for: both are cut to the same middle. Masks go the way of their images, with the nearest neighbour.
"""

from __future__ import annotations

import hashlib
import stat
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, overload

import numpy as np
from numpy.typing import NDArray

from skdeploy.core.errors import UsageError
from skdeploy.core.files import digest_file
from skdeploy.core.listing import some
from skdeploy.core.spec import ModelSpec
from skdeploy.images import samples
from skdeploy.images.dataset import Dataset, open_dataset, require_there
from skdeploy.images.decoding import DECODING, GREY_OR_RGB, SUFFIXES, ImageError, Pixels, open_image, printable
from skdeploy.images.folders import read_folder
from skdeploy.images.numpy_file import names_of_arrays, read_npz_or_npy
from skdeploy.images.targets import TARGETS_KEY, Kind, image_target, mask_target, pixels_of, unresized

INPUTS: Final = frozenset({
    "input", "inputs", "image", "images", "img", "imgs", "lq", "low", "lr", "blur", "blurry", "hazy", "noisy", "rain", "rainy",
    "degraded", "source",
})  # fmt: skip
TARGETS: Final = frozenset({
    "target", "targets", "gt", "groundtruth", "ground_truth", "hq", "high", "hr", "sharp", "clear", "clean", "norain", "mask",
    "masks", "label", "labels", "segmentation", "annotations",
})  # fmt: skip
LAYOUT: Final = (
    "give a folder with input/ and target/ (or blur/ and sharp/, images/ and masks/), whose files have the same names, or an "
    ".npz with images and targets"
)
PACKED: Final = "pairs.npz"
SHOWN: Final = 3


@dataclass(frozen=True)
class PairedData:
    """Inputs in a fixed order, and the target of each: a file, or a row of an array (N, ...)."""

    inputs: Dataset
    files: tuple[Path, ...] = ()
    rows: NDArray[Any] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def name(self) -> str:
        return self.inputs.name

    @cached_property
    def targets_digest(self) -> str:
        """SHA-256 over the targets in order."""
        if self.rows is not None:
            return hashlib.sha256(repr(self.rows.shape).encode() + self.rows.tobytes()).hexdigest()
        return hashlib.sha256("".join(digest_file(file) for file in self.files).encode()).hexdigest()

    def name_of(self, index: int) -> str:
        return self.inputs.name_of(index)

    def target_name(self, index: int) -> str:
        """The target's file, or its place in the array, for messages."""
        return printable(str(self.files[index])) if self.rows is None else f"{TARGETS_KEY}[{index}]"

    def take(self, indices: Sequence[int]) -> PairedData:
        rows = None if self.rows is None else self.rows[list(indices)]
        files = tuple(self.files[index] for index in indices) if self.files else ()
        return replace(self, inputs=self.inputs.take(indices), files=files, rows=rows)

    def crop(self, index: int, spec: ModelSpec, kind: Kind) -> Pixels:
        """Return the input of the network: uint8 (H, W, C), or a sample. Only images to images are not resized.

        Raises UsageError naming a file that cannot be read, or is too small.
        """
        if kind != "image":
            return self.inputs.crop(index, spec).pixels
        return self.inputs.crop(index, unresized(spec)).pixels

    def target(self, index: int, spec: ModelSpec, kind: Kind) -> NDArray[Any]:
        """Return the target, cut as the crop is.

        ``image``: uint8 (k H, k W, C), k times the crop for a network that enlarges; ``mask``: int64 (H, W), 255 where nobody
        says what is there; ``array``: as it is. Raises UsageError naming a file that cannot be read, or does not fit the other.
        """
        shown = self.target_name(index)
        given = self.rows[index] if self.rows is not None else self.files[index]
        if kind == "array":
            return _array(given, shown)
        make = mask_target if kind == "mask" else image_target
        return make(given, shown, size_of(self.inputs, index), spec)

    def read(self, index: int, spec: ModelSpec, kind: Kind) -> tuple[Pixels, NDArray[Any]]:
        """Both. Raises UsageError."""
        return self.crop(index, spec, kind), self.target(index, spec, kind)

    def crops(self, spec: ModelSpec, kind: Kind) -> Sequence[Pixels]:
        """All crops, each read when it is asked for."""
        return _Crops(self, spec, kind)


class _Crops(Sequence[Pixels]):
    def __init__(self, pairs: PairedData, spec: ModelSpec, kind: Kind) -> None:
        self._pairs, self._spec, self._kind = pairs, spec, kind

    def __len__(self) -> int:
        return len(self._pairs)

    @overload
    def __getitem__(self, index: int) -> Pixels: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Pixels]: ...

    def __getitem__(self, index: int | slice) -> Pixels | Sequence[Pixels]:
        if isinstance(index, slice):
            return _Crops(self._pairs.take(range(len(self))[index]), self._spec, self._kind)
        return self._pairs.crop(range(len(self))[index], self._spec, self._kind)


def size_of(data: Dataset, index: int) -> tuple[int, int]:
    """Height and width of an image as it is stored. Raises ImageError naming one that cannot be read."""
    from PIL import Image

    if data.pixels is not None:
        height, width = data.pixels.shape[1:3]
        return height, width
    file = data.files[index]
    if file.suffix.lower() in samples.SUFFIXES:
        array = read_npz_or_npy(file, ("image",), advice="save with np.save(file, image)")
        found = array if isinstance(array, np.ndarray) else array["image"]
        return found.shape[0], found.shape[1]
    try:
        with open_image(file) as image:
            return image.height, image.width
    except (*DECODING, Image.DecompressionBombError) as error:
        raise ImageError(f"cannot read the image {file}: {error}", str(error)) from error


def open_pairs(source: Path, spec: ModelSpec, number: int | None = None) -> PairedData:
    """Pairs at a path, none of them decoded yet, in the order of their sorted names; ``number`` of them, evenly spread.

    Raises UsageError: neither layout, or an input without a target, or a target without an input.
    """
    pairs = _found(source, spec)
    if number is None or number >= len(pairs):
        return pairs
    return pairs.take([index * len(pairs) // number for index in range(number)])


def _found(source: Path, spec: ModelSpec) -> PairedData:
    if not stat.S_ISDIR(require_there(source).st_mode):
        return _of_archive(source, spec)
    found = read_folder(source, SUFFIXES if _takes_files(spec) else samples.SUFFIXES)
    targets_too = read_folder(source, samples.SUFFIXES if _takes_files(spec) else SUFFIXES)
    inputs, targets, left = _sides(source, (*found.files, *targets_too.files))
    if not inputs or not targets:
        archive = source / PACKED
        if archive.is_file():
            return _of_archive(archive, spec)
        missing = "inputs" if not inputs else "targets"
        parents = {file.parent.name for file in (*found.files, *targets_too.files)}
        folders = some([printable(name) for name in sorted(parents)])
        said = f"; its folders of files are {folders}" if folders else ", nor any files"
        raise UsageError(f"{source} has no folder of {missing}{said}", advice=LAYOUT)
    _check_matched(source, inputs, targets)
    keys = sorted(inputs)
    dataset = Dataset(printable(source.name), files=tuple(inputs[key] for key in keys), root=source)
    notes = (f"left out of {printable(source.name)}: {left} files beside the folders of pairs",) if left else ()
    return PairedData(dataset, files=tuple(targets[key] for key in keys), notes=notes)


def has_targets(source: Path, spec: ModelSpec) -> bool:
    """Whether a path seems to hold pairs, and not only inputs: a folder of targets, or an .npz with some."""
    if not stat.S_ISDIR(require_there(source).st_mode):
        return source.suffix.lower() == ".npz" and TARGETS_KEY in names_of_arrays(source)
    suffixes = (SUFFIXES + samples.SUFFIXES) if _takes_files(spec) else samples.SUFFIXES
    files = read_folder(source, suffixes).files
    below = {part.casefold() for file in files for part in file.relative_to(source).parts[:-1]}
    return bool(below & TARGETS) or (source / PACKED).is_file()


def _takes_files(spec: ModelSpec) -> bool:
    return spec.takes_images and spec.input.channels in GREY_OR_RGB


def _sides(source: Path, files: Sequence[Path]) -> tuple[dict[str, Path], dict[str, Path], int]:
    """Inputs and targets by their path without the folder that tells which, and without the suffix."""
    sides: dict[frozenset[str], dict[str, Path]] = {INPUTS: {}, TARGETS: {}}
    used: dict[frozenset[str], set[str]] = defaultdict(set)
    left = 0
    for file in files:
        parts = file.relative_to(source).parts
        places = [at for at, part in enumerate(parts[:-1]) if part.casefold() in INPUTS | TARGETS]
        if not places:
            left += 1
            continue
        at = places[-1]
        side = INPUTS if parts[at].casefold() in INPUTS else TARGETS
        used[side].add(parts[at])
        key = "/".join((*parts[:at], *parts[at + 1 : -1], file.stem))
        if key in sides[side] and sides[side][key].parent == file.parent:
            raise UsageError(
                f"{sides[side][key]} and {file} have the same name but for the suffix", advice="remove one of them"
            )
        sides[side].setdefault(key, file)
    for side, names in used.items():
        if len(names) > 1:
            what = "inputs" if side is INPUTS else "targets"
            raise UsageError(
                f"{source} has several folders of {what}: {', '.join(sorted(names))}",
                advice="keep one of them below the folder that you give, and move the others away",
            )
    return sides[INPUTS], sides[TARGETS], left


def _check_matched(source: Path, inputs: dict[str, Path], targets: dict[str, Path]) -> None:
    for what, other, lonely in (
        ("inputs", "target", sorted(inputs.keys() - targets.keys())),
        ("targets", "input", sorted(targets.keys() - inputs.keys())),
    ):
        if lonely:
            known = inputs if what == "inputs" else targets
            names = some([printable(str(known[key].relative_to(source))) for key in lonely], SHOWN)
            raise UsageError(
                f"{len(lonely)} of the {len(known)} {what} in {source} have no {other} of the same name: {names}",
                advice="the names must be the same but for the suffix; rename or remove these files",
            )


def _of_archive(source: Path, spec: ModelSpec) -> PairedData:
    """An .npz of all pairs."""
    if source.suffix.lower() != ".npz":
        raise UsageError(f"{source} is neither a folder of pairs nor an .npz of them", advice=LAYOUT)
    names = ("images",) if spec.takes_images else tuple(each.name for each in spec.inputs)
    content = read_npz_or_npy(source, (*names, TARGETS_KEY))
    missing = [name for name in (*names, TARGETS_KEY) if isinstance(content, np.ndarray) or name not in content]
    if missing:
        needed = ", ".join((*names, TARGETS_KEY))
        raise UsageError(f"{source} has no array named {missing[0]!r}; it needs {needed}", advice=LAYOUT)
    assert isinstance(content, dict)  # an array misses both names, above
    inputs, targets = open_dataset(source, spec=spec), content[TARGETS_KEY]
    if targets.ndim < 1 or len(targets) != len(inputs):
        count = len(targets) if targets.ndim else 0
        raise UsageError(f"{source} holds {len(inputs)} inputs and {count} targets", advice="give a target for each")
    return PairedData(inputs, rows=targets)


def _array(given: NDArray[Any] | Path, shown: str) -> NDArray[Any]:
    """A target as it is: an array, or an image's pixels, uint8 (H, W) or (H, W, C)."""
    return pixels_of(given, shown) if isinstance(given, Path) else np.asarray(given)

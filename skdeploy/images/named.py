"""Samples that somebody named one by one: files, folders, stacks of arrays, arrays of a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skdeploy.core.errors import UsageError
from skdeploy.core.listing import some_lines
from skdeploy.core.spec import ModelSpec
from skdeploy.images import samples
from skdeploy.images.dataset import Dataset, open_dataset
from skdeploy.images.decoding import GREY_OR_RGB, SUFFIXES, ImageError, Pixels, printable
from skdeploy.images.numpy_file import read_npz_or_npy


@dataclass(frozen=True)
class Named:
    """One image or sample. ``name`` is what a report calls it, ``below`` where its output belongs in a folder of outputs."""

    name: str
    below: Path
    data: Dataset
    index: int = 0

    @property
    def file(self) -> Path | None:
        """The file that it is, or is part of; None for an array of a program."""
        return self.data.files[self.index] if self.data.files else self.data.root

    def read(self, spec: ModelSpec) -> Pixels:
        """The crop, uint8 (H, W, C), or the sample. Raises ImageError naming it."""
        return self.data.crop(self.index, spec).pixels

    def read_whole(self, spec: ModelSpec) -> Pixels:
        """The same, but a sample whose free sizes are smaller than the usual ones keeps them. Raises UsageError too."""
        return self.read(self.own_spec(spec))

    def own_spec(self, spec: ModelSpec) -> ModelSpec:
        """The spec with the sizes of this sample, where they are smaller than the usual ones. Raises UsageError."""
        file = self.file
        return spec if spec.takes_images or file is None else samples.shorter_spec(file, spec)


def suffixes_of(spec: ModelSpec) -> tuple[str, ...]:
    """The kinds of files that a network's samples have."""
    return SUFFIXES if takes_image_files(spec) else samples.SUFFIXES


def takes_image_files(spec: ModelSpec) -> bool:
    """Whether the network takes what image files hold: images of 1 or 3 channels."""
    return spec.takes_images and spec.input.channels in GREY_OR_RGB


def named_samples(given: Sequence[Path], spec: ModelSpec) -> list[Named]:
    """Files as they are given, folders' files at any depth by name, and each sample of a stack, (N, ...).

    Raises UsageError: nothing given, a folder without any, a stack that the network does not take.
    """
    found: list[Named] = []
    known = suffixes_of(spec)
    for path in given:
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if each.suffix.lower() in known)
            if not inside:
                what = "images" if takes_image_files(spec) else "samples"
                takes = "" if takes_image_files(spec) else f"; {spec.name} takes {spec.shown_inputs}"
                raise UsageError(f"no {what} in the folder {path}", advice=f"looked for {', '.join(known)}{takes}")
            found += [_of_file(file, file.relative_to(path)) for file in inside]
        elif takes_image_files(spec):
            found.append(_of_file(path, Path(path.name)))
        else:
            found += _of_stack(path, spec)
    if not found:
        what = "images" if spec.takes_images else "samples"
        raise UsageError(f"no {what} to predict", advice=f"give files ({', '.join(known)}), or folders of them")
    return found


def named_rows(rows: Any, first: int = 0) -> list[Named]:
    """Samples of a program, (N,): named by their place."""
    data = Dataset("arrays", pixels=rows)
    return [Named(f"sample {first + at}", Path(f"{first + at:04}"), data, at) for at in range(len(rows))]


def check_readable(given: Sequence[Named], spec: ModelSpec) -> None:
    """Raises UsageError with all samples that cannot be used, before any of them is run."""
    wrong = []
    for each in given:
        try:
            found = each.data.crop_or_error(each.index, each.own_spec(spec))
        except UsageError as error:
            found = ImageError(error.message, error.message.removeprefix(f"{each.file}: "), advice=error.advice)
        if isinstance(found, ImageError):
            wrong.append((each, found))
    if not wrong:
        return
    if len(wrong) == 1:
        raise wrong[0][1]
    raise UsageError(
        f"{len(wrong)} of the {len(given)} samples cannot be used:\n"
        + some_lines([f"{each.name}: {error.reason}" for each, error in wrong]),
        advice=wrong[0][1].advice,
    )


def _of_file(file: Path, below: Path) -> Named:
    return Named(printable(str(file)), below, Dataset(printable(file.name), files=(file,)))


def _of_stack(path: Path, spec: ModelSpec) -> list[Named]:
    """A file of arrays: one sample, or several stacked."""
    if spec.takes_images and _holds_one(path):
        return [_of_file(path, Path(path.name))]
    data = open_dataset(path, spec=spec if spec.takes_images else samples.shorter_spec(path, spec))
    if data.files:
        return [_of_file(file, Path(file.name)) for file in data.files]
    if len(data) == 1:
        return [Named(printable(str(path)), Path(path.name), Dataset(data.name, pixels=data.pixels, root=path))]
    rows, digits = Dataset(data.name, pixels=data.pixels, root=path), len(str(len(data) - 1))
    return [
        Named(f"{printable(str(path))}[{at}]", Path(path.stem) / f"{at:0{digits}}.npz", rows, at)
        for at in range(len(data))
    ]


def _holds_one(path: Path) -> bool:
    """Whether a file holds one image of any number of channels: an .npy of (H, W, C), or an .npz with ``image``."""
    if path.suffix.lower() not in samples.SUFFIXES:
        return False
    content = read_npz_or_npy(path, ("images", "image"))
    return content.ndim == 3 if isinstance(content, np.ndarray) else "images" not in content

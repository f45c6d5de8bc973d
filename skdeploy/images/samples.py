"""Samples of networks that do not take images: float arrays by input name, from .npz and .npy files.

A sample is one row of a structured array, whose fields are the network's inputs: rows stack, slice and join as images do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skdeploy.core.errors import UsageError
from skdeploy.core.interface import ArrayInput
from skdeploy.core.spec import ModelSpec
from skdeploy.images.decoding import Crop, ImageError
from skdeploy.images.folders import read_folder
from skdeploy.images.numpy_file import read_npz_or_npy, shapes_of_arrays

Samples = NDArray[np.void]

SUFFIXES: Final = (".npz", ".npy")
MODE: Final = "array"  # of a Crop, beside Pillow's names
LABELS: Final = "labels"
CASES: Final = {"noise": 4, "zeros": 1, "extremes": 3, "tiny-contrast": 1}  # samples of each synthetic suite


def row_type(spec: ModelSpec) -> np.dtype[np.void]:
    """The type of one sample: a field for each input, of its usual shape."""
    return np.dtype([(each.name, each.dtype, spec.usual_shape(each.shape)) for each in spec.inputs])


def shorter_spec(file: Path, spec: ModelSpec) -> ModelSpec:
    """The spec with the free sizes of a file's samples as the usual ones, where those are smaller. Only shapes are read.

    Raises UsageError: a size that is not the multiple which the card says, a file that cannot be read.
    """
    found: dict[str, int] = {}
    shapes = shapes_of_arrays(file) if spec.sizes else {}
    for each in spec.inputs:
        shape = shapes.get(each.name, shapes.get("") if len(spec.inputs) == 1 else None) or ()
        shape = shape[1:] if len(shape) == len(each.shape) + 1 else shape
        if len(shape) != len(each.shape):
            continue  # ``fitted`` says what is wrong
        shape = (shape[-1], *shape[:-1]) if each.channels_last and len(shape) > 1 else shape
        for size, name in zip(shape, each.shape, strict=True):
            if not isinstance(name, str) or size >= min(spec.sizes[name].usual, found.get(name, size + 1)):
                continue
            if size % spec.sizes[name].multiple or not size:
                raise UsageError(
                    f"{file}: {each.name} has {name} {size}, but {spec.name} takes multiples of {spec.sizes[name].multiple}",
                    advice="cut or pad the sample as the training code did",
                )
            found[name] = size
    return spec.with_usual(spec.usual_sizes | found) if found else spec


def read_sample(file: Path, spec: ModelSpec) -> Crop:
    """One sample from its own file. Raises ImageError naming it: not readable, or not what the network takes."""
    try:
        arrays = read_named(file, spec)
        row = np.zeros((), row_type(spec))
        for each in spec.inputs:
            array = arrays[each.name]
            if array.ndim == len(each.shape) + 1 and len(array) != 1:
                raise UsageError(
                    f"{file}: {each.name} has shape {array.shape}, a stack of {len(array)} samples; in a folder each file is "
                    "one sample",
                    advice="give the file itself, or write a file for each sample",
                )
            row[each.name] = fitted(array[0] if array.ndim == len(each.shape) + 1 else array, each, spec, str(file))
    except UsageError as error:
        raise ImageError(error.message, error.message.removeprefix(f"{file}: "), advice=error.advice) from error
    return checked(row, str(file))


def read_stack(file: Path, spec: ModelSpec) -> tuple[Samples, NDArray[np.int64] | None]:
    """All samples of one file, an array (N, ...) for each input, and its ``labels``, (N,), if it has any.

    An array of one sample alone, without N, is one sample. Raises UsageError.
    """
    arrays = read_named(file, spec, (LABELS,))
    return stacked_rows(arrays, spec, str(file)), arrays.get(LABELS)


def stacked_rows(arrays: Mapping[str, NDArray[Any]], spec: ModelSpec, shown: str) -> Samples:
    """Samples of arrays by input name, (N, ...) each, or of one sample without N. Raises UsageError naming ``shown``."""
    stacked = {
        each.name: arrays[each.name] if arrays[each.name].ndim != len(each.shape) else arrays[each.name][None]
        for each in spec.inputs
    }
    for each in spec.inputs:
        if stacked[each.name].ndim != len(each.shape) + 1:
            raise _rank(stacked[each.name], each, shown)
    count = check_counts(stacked, shown)
    rows = np.zeros(count, row_type(spec))
    for each in spec.inputs:
        for place, array in enumerate(stacked[each.name]):
            alone = arrays[each.name].ndim == len(each.shape)
            rows[each.name][place] = fitted(array, each, spec, shown if alone else f"{shown}[{place}]")
    return rows


def check_counts(stacked: Mapping[str, NDArray[Any]], shown: str) -> int:
    """How many samples arrays of (N, ...) hold. Raises UsageError where they hold different numbers, or none."""
    counts = {name: len(array) for name, array in stacked.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        said = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise UsageError(f"{shown} holds {said}", advice="give as many samples of each input, at least one")
    return next(iter(counts.values()))


def read_named(file: Path, spec: ModelSpec, beside: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """The arrays of a file by input name, and those ``beside`` that are there. An .npy is the only input's.

    Raises UsageError: not readable, an input is missing.
    """
    names = [each.name for each in spec.inputs]
    own = {LABELS: names} if LABELS in names else {}
    wanted = [*names, *(name for name in beside if name not in own and name not in names)]
    content = read_npz_or_npy(file, wanted, advice=f"save with np.savez(file, {'=..., '.join(names)}=...)")
    if isinstance(content, np.ndarray):
        if len(names) > 1:
            raise UsageError(
                f"{file} is one array, but {spec.name} takes {', '.join(names)}",
                advice=f"save an .npz: np.savez(file, {'=..., '.join(names)}=...)",
            )
        return {names[0]: content}
    missing = [name for name in names if name not in content]
    if missing:
        raise UsageError(
            f"{file}: no array named {missing[0]!r}; {spec.name} takes {', '.join(names)}",
            advice=f"save with np.savez(file, {'=..., '.join(names)}=...)",
        )
    return content


def fitted(array: NDArray[Any], each: ArrayInput, spec: ModelSpec, shown: str) -> NDArray[Any]:
    """An array of one sample as the input takes it: its type, its order of dimensions, free ones cut to the usual size.

    Raises UsageError: another rank, type or size.
    """
    if array.ndim != len(each.shape):
        raise _rank(array, each, shown)
    array = np.moveaxis(array, -1, 0) if each.channels_last and array.ndim > 1 else array
    wanted = spec.usual_shape(each.shape)
    for axis, (size, usual) in enumerate(zip(array.shape, wanted, strict=True)):
        name = each.shape[axis]
        if size == usual or (isinstance(name, str) and size > usual):
            continue
        advice = f"give arrays of shape {_shown(each.shape)}"
        if isinstance(name, str):
            advice = f"give longer samples, or a smaller usual under [sizes.{name}] of the card"
        elif array.ndim > 1 and array.shape[-1] == wanted[0] and array.shape[0] != wanted[0]:
            advice = (
                f"these arrays have their first dimension last: set channels_last = true for {each.name} in the card"
            )
        raise UsageError(
            f"{shown}: {each.name} has shape {array.shape}, but {spec.name} takes {_shown(each.shape)}"
            + (f" with {name} {usual}" if isinstance(name, str) else ""),
            advice=advice,
        )
    starts = [(size - usual) // 2 for size, usual in zip(array.shape, wanted, strict=True)]
    cut = array[tuple(slice(start, start + usual) for start, usual in zip(starts, wanted, strict=True))]
    return typed(cut, each, shown)


def typed(array: NDArray[Any], each: ArrayInput, shown: str) -> NDArray[Any]:
    """In the input's type, where no value can change but by rounding."""
    target = np.dtype(each.dtype)
    if array.dtype == target:
        return array
    if target.kind != array.dtype.kind or target.kind == "u":
        raise UsageError(
            f"{shown}: {each.name} is {array.dtype}, but {each.dtype} is needed",
            advice=f"convert it as the training code did, and save .astype(np.{each.dtype})",
        )
    with np.errstate(over="ignore"):  # a float64 too large becomes infinite, which is refused
        converted: NDArray[Any] = array.astype(target)
    if target.kind == "i" and not np.array_equal(converted, array):
        raise UsageError(f"{shown}: {each.name} holds numbers beyond {each.dtype}", advice="save smaller numbers")
    return converted


def checked(row: NDArray[Any], shown: str) -> Crop:
    """One sample whose values are all finite. Raises ImageError."""
    for name in row.dtype.names or ():
        wrong = int(np.size(row[name]) - np.count_nonzero(np.isfinite(row[name])))
        if wrong:
            reason = f"{wrong:,} of the {np.size(row[name]):,} values of {name} are NaN or infinite"
            raise ImageError(f"{shown}: {reason}", reason, advice="remove it, or give other samples")
    return Crop(row, 1.0, MODE)


def smallest_sizes(source: Path, inputs: Sequence[ArrayInput]) -> dict[str, int]:
    """The smallest that samples at a path have of each free dimension, by name: only the shapes in the files are read.

    Empty where no file holds what the inputs ask for. Raises UsageError: a file that cannot be read.
    """
    files = read_folder(source, SUFFIXES).files if source.is_dir() else (source,)
    found: dict[str, int] = {}
    for file in files:
        if file.suffix.lower() not in SUFFIXES:
            continue
        shapes = shapes_of_arrays(file)
        for each in inputs:
            shape = shapes.get(each.name, shapes.get("") if len(inputs) == 1 else None) or ()
            shape = shape[1:] if len(shape) == len(each.shape) + 1 else shape
            if len(shape) != len(each.shape):
                continue
            for size, name in zip(shape, each.shape, strict=True):
                if isinstance(name, str):
                    found[name] = min(size, found.get(name, size))
    return found


def random_samples(spec: ModelSpec, count: int, seed: int) -> Samples:
    """Normal noise for each float input, 0 or 1 for integers: what there is to run on where nobody gave samples."""
    generator = np.random.default_rng(seed)
    rows = np.zeros(count, row_type(spec))
    for each in spec.inputs:
        shape = rows[each.name].shape
        noise = generator.standard_normal(shape) if each.dtype == "float32" else generator.integers(0, 2, shape)
        rows[each.name] = noise.astype(each.dtype)
    return rows


def resized_rows(rows: Samples, spec: ModelSpec) -> Samples:
    """The same samples at the usual sizes of ``spec``: larger ones are cut, smaller ones begin again."""
    found = np.zeros(len(rows), row_type(spec))
    for each in spec.inputs:
        array = rows[each.name]
        for axis, size in enumerate(spec.usual_shape(each.shape), 1):
            array = np.take(array, np.arange(size) % array.shape[axis], axis=axis)
        found[each.name] = array
    return found


def synthetic_rows(suite: str, samples: Samples, random: np.random.Generator) -> Samples:
    """Samples that no data set holds, between the least and the largest value that ``samples`` have of each input.

    noise: uniform. zeros. extremes: the ends of the range in turn along each dimension, and the largest everywhere.
    tiny-contrast: the middle of the range, and a 256th of it more at random.
    """
    cases = []
    for case in range(CASES[suite]):
        row = np.zeros((), samples.dtype)
        for name in samples.dtype.names or ():
            values, shape = samples[name], row[name].shape
            low, high = values.min(), values.max()
            places = sum(np.indices(shape)) if shape else np.zeros(())
            if suite == "noise":
                row[name] = _between(low, high, random.random(shape))
            elif suite == "extremes":
                row[name] = np.where((places // max(1, 4 * case)) % 2 == 0, low, high) if case < 2 else high
            elif suite != "zeros":
                row[name] = _between(low, high, 0.5 + random.integers(0, 2, shape) / 256)
        cases.append(row)
    return np.stack(cases)


def _between(low: Any, high: Any, share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers of a range by their share of it; integers, where they are wanted, round down and reach the largest."""
    least, most = float(low), float(high)
    if low.dtype.kind == "f":
        return least + (most - least) * share
    return np.minimum(least + np.floor(share * (most - least + 1)), most)


def _rank(array: NDArray[Any], each: ArrayInput, shown: str) -> UsageError:
    return UsageError(
        f"{shown}: {each.name} has shape {array.shape}, of rank {array.ndim}; a sample is {_shown(each.shape)}",
        advice="give one sample a file, or in one file all of them stacked, (N, ...)",
    )


def _shown(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"

"""Inputs and outputs that somebody else's code has computed and saved, to compare artifacts with: ``--golden``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skdeploy.backends.base import Array
from skdeploy.backends.logits import OUTPUT, fits
from skdeploy.core.errors import UsageError
from skdeploy.core.files import digest_file
from skdeploy.core.spec import CLASSIFICATION, ModelSpec
from skdeploy.images.dataset import Inputs, normalise
from skdeploy.images.decoding import Pixels, crop_array, printable
from skdeploy.images.fed import fed_rows
from skdeploy.images.numpy_file import read_npz_or_npy
from skdeploy.images.samples import Samples, checked

INPUTS: Final = ("input", "x")
LOGITS: Final = ("logits", "y")
IMAGES: Final = "images"
SAVE: Final = "save with np.savez(file, input=x.numpy(), logits=model(x).numpy()); docs/how-to/prove.md shows how"


@dataclass(frozen=True)
class Golden:
    """``outputs``, float32 (N, ...) by name, of ``inputs``, float32 (N, C, H, W), or of ``images``, uint8 (N, H, W, C); of a
    network that takes arrays, of ``rows``, its samples.

    A network that has classes has one output, ``logits``.

    With images, the card's preprocessing is part of what is compared.
    """

    name: str
    sha256: str
    outputs: dict[str, Array]
    inputs: Inputs | None
    images: Pixels | None
    half: bool = False  # whether the logits were saved in FP16
    rows: Samples | None = None

    def __len__(self) -> int:
        return len(next(iter(self.outputs.values())))

    @property
    def logits(self) -> Array:
        """(N, classes), of a network that has classes."""
        return self.outputs[OUTPUT]

    @property
    def reference(self) -> str:
        """The name in a report."""
        return f"{self.name}, outputs saved by the author's code"

    def name_of(self, index: int) -> str:
        """The name of one image or sample in a report."""
        if self.rows is not None:
            return f"samples[{index}]"
        return f"{IMAGES if self.images is not None else INPUTS[0]}[{index}]"

    def fed(self, spec: ModelSpec) -> Pixels | Inputs:
        """Return the inputs for artifacts of ``spec``: crops, uint8 (N, H, W, C), or inputs, float32 (N, C, H, W).

        Raises UsageError where the file belongs to another input or another number of classes.
        """
        for wanted in spec.outputs:
            shape = self.outputs[wanted.name].shape
            if not fits(shape, (shape[0], *wanted.shape[1:])):
                raise UsageError(
                    f"--golden {self.name} has {wanted.name} of shape {shape}, but {spec.name} gives {wanted}",
                    advice="save the outputs of the same network, for images of the same size",
                )
        if not spec.outputs and self.logits.shape[1] != spec.network.classes:
            raise UsageError(
                f"--golden {self.name} has logits of {self.logits.shape[1]} classes, but {spec.name} has "
                f"{spec.network.classes}",
                advice="save the outputs of the same network, before any softmax or top-k",
            )
        if self.rows is not None:
            return self.rows
        if self.images is not None:
            return np.stack([crop_array(image, spec).pixels for image in self.images])
        assert self.inputs is not None  # read_golden: one of the three is there
        channels, height, width = self.inputs.shape[1:]
        if (channels, height, width) != spec.input.shape:
            own = " x ".join(map(str, spec.input.shape))
            size = f"--imgsz {height}, or " if height == width and channels == spec.input.channels else ""
            raise UsageError(
                f"--golden {self.name} has inputs of {channels} x {height} x {width}, but {spec.name} takes {own}",
                advice=f"export with {size}a corrected [input] in the card",
            )
        return self.inputs

    def difference_of_inputs(self, spec: ModelSpec) -> float | None:
        """The largest difference between saved inputs and what the card makes of the images; None without both of one shape."""
        if self.images is None or self.inputs is None:
            return None
        fed = self.fed(spec)
        ours = normalise(fed.astype(np.uint8), spec.preprocess)
        return float(np.max(np.abs(ours - self.inputs))) if ours.shape == self.inputs.shape else None

    def looks_like_probabilities(self, spec: ModelSpec) -> bool:
        """Whether every row of a classifier's logits is positive and sums to one: what a softmax gives."""
        if spec.task != CLASSIFICATION or spec.gives_numbers:
            return False
        logits = self.outputs[spec.class_tensor.name]
        return bool((logits >= 0).all() and np.allclose(logits.sum(1), 1, atol=1e-3) and logits.shape[1] > 1)


def read_golden(path: Path, spec: ModelSpec | None = None) -> Golden:
    """The arrays of an .npz, by the names of the network's inputs and outputs. Without ``spec``, images and logits.

    Raises UsageError: not readable, not finite, or a name, shape or type that ``Golden`` excludes.
    """
    names = () if spec is None else tuple(output.name for output in spec.outputs)
    fed = () if spec is None else tuple(each.name for each in spec.inputs)
    advice = SAVE if spec is None else _how_to_save(spec)
    content = read_npz_or_npy(path, (*(fed or (*INPUTS, IMAGES)), *(names or LOGITS)), advice=advice)
    if isinstance(content, np.ndarray):
        raise UsageError(f"--golden {path} is one array, not inputs and outputs", advice=advice)
    shown = printable(path.name)
    if spec is not None and fed:
        return _of_arrays(path, shown, content, spec)
    outputs = {name: content.get(name) for name in names} or {OUTPUT: _one_of(content, LOGITS, shown)}
    inputs, images = _one_of(content, INPUTS, shown), content.get(IMAGES)
    missing = [name for name, array in outputs.items() if array is None]
    if missing or (inputs is None and images is None):
        lacking = missing[0] if missing else "input"
        raise UsageError(f"--golden {shown} has no array named {lacking!r}, only {sorted(content)}", advice=SAVE)
    found = {name: array for name, array in outputs.items() if array is not None}
    for name, output in found.items():
        _check(shown, name, output, "fiub", output.ndim if names else 2, "(N, ...)" if names else "(N, classes)")
    if inputs is not None:
        _check(shown, "input", inputs, "f", 4, "(N, C, H, W), after preprocessing")
    if images is not None:
        if images.ndim == 3:
            images = images[..., None]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
            raise UsageError(
                f"--golden {shown}: images are {images.dtype} of shape {images.shape}",
                advice="save raw uint8 pixels, (N, H, W, C), before preprocessing",
            )
    first, rows = next((name, len(array)) for name, array in found.items())
    for name, array in (*found.items(), ("input", inputs), (IMAGES, images)):
        if array is not None and len(array) != rows:
            raise UsageError(f"--golden {shown} has {len(array)} of {name!r} but {rows} rows of {first}", advice=SAVE)
        if array is not None and array.size > 1 and (array == array.flat[0]).all():
            raise UsageError(
                f"--golden {shown}: all values of {name} are {array.flat[0]:g}, which tests nothing",
                advice="save real images and the network's outputs for them",
            )
    return Golden(
        name=shown,
        sha256=digest_file(path),
        outputs=_typed(found, spec),
        inputs=None if inputs is None else inputs.astype(np.float32),
        images=images,
        half=any(array.dtype == np.float16 for array in found.values()),
    )


def _of_arrays(path: Path, shown: str, content: dict[str, NDArray[Any]], spec: ModelSpec) -> Golden:
    """Of a network that takes arrays: its inputs as they are fed, of any size that it has, and what it made of them."""
    found = {
        output.name: content[name]
        for output in spec.given
        if (name := _name_of_output(output.name, content, shown)) is not None
    }
    missing = [each.name for each in spec.inputs if each.name not in content]
    missing += [output.name for output in spec.given if output.name not in found]
    if missing:
        raise UsageError(
            f"--golden {shown} has no array named {missing[0]!r}, only {sorted(content)}", advice=_how_to_save(spec)
        )
    for name, output in found.items():
        _check(shown, name, output, "fiub", max(1, output.ndim), "(N, ...)")
    rows = fed_rows({each.name: content[each.name] for each in spec.inputs}, spec, f"--golden {shown}")
    for row in rows:
        checked(np.asarray(row), f"--golden {shown}")
    for name, output in found.items():
        if len(output) != len(rows):
            raise UsageError(
                f"--golden {shown} has {len(rows)} samples but {len(output)} rows of {name}", advice=_how_to_save(spec)
            )
    half = any(array.dtype == np.float16 for array in found.values())
    outputs = _typed(found, spec)
    return Golden(shown, digest_file(path), outputs, None, None, half, rows)


def _typed(found: Mapping[str, NDArray[Any]], spec: ModelSpec | None) -> dict[str, NDArray[Any]]:
    """Outputs as the spec says, floats where it says nothing: whoever saved integers as floats has the same numbers."""
    whole = {} if spec is None else {each.name: each.dtype for each in spec.given if not each.is_floating}
    return {name: array.astype(whole.get(name, "float32")) for name, array in found.items()}


def _name_of_output(name: str, content: dict[str, NDArray[Any]], shown: str) -> str | None:
    """The name that an output has in the file: its own, or for logits any that logits may have."""
    if name != OUTPUT:
        return name if name in content else None
    found = [other for other in LOGITS if other in content]
    _one_of(content, LOGITS, shown)
    return found[0] if found else None


def _how_to_save(spec: ModelSpec) -> str:
    if spec.takes_images:
        return SAVE
    names = [*(each.name for each in spec.inputs), *(output.name for output in spec.given)]
    return f"save what goes in and comes out, (N, ...) each: np.savez(file, {'=..., '.join(names)}=...)"


def _one_of(content: dict[str, NDArray[Any]], names: tuple[str, ...], shown: str) -> NDArray[Any] | None:
    found = [name for name in names if name in content]
    if len(found) > 1:
        raise UsageError(f"--golden {shown} has both {found[0]!r} and {found[1]!r}", advice="save only one of them")
    return content[found[0]] if found else None


def _check(shown: str, name: str, array: NDArray[Any], kinds: str, rank: int, wanted: str) -> None:
    if array.dtype.kind not in kinds or array.ndim != rank or not array.size:
        raise UsageError(
            f"--golden {shown}: {name} is {array.dtype} of shape {array.shape}", advice=f"it must be {wanted}; {SAVE}"
        )
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32))
    if not finite.all():
        raise UsageError(
            f"--golden {shown}: {int((~finite).sum()):,} values of {name} are NaN, infinite or beyond float32, "
            f"first in row {int(np.argwhere(~finite)[0, 0])}",
            advice="save them from a network in eval mode, on real images",
        )

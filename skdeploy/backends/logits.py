"""Images through a session: the one loop from images to outputs, and what makes outputs unusable."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skdeploy.backends.base import Array, Session
from skdeploy.core.spec import CLASSIFICATION, LOGITS, ModelSpec
from skdeploy.images.dataset import Inputs, Pixels
from skdeploy.images.feeds import RUN_BATCH, batches_of, feeds_of

OUTPUT: Final = LOGITS


def check_outputs(outputs: Mapping[str, Array], images: int, spec: ModelSpec) -> tuple[str, ...]:
    """Reasons why a comparison is pointless: an output is missing, of another shape or type, or not finite."""
    for wanted in spec.given:
        found, shape = outputs.get(wanted.name), (images, *wanted.shape[1:])
        plural = wanted.name == OUTPUT
        if found is None:
            return (f"no output named {wanted.name!r}, only {sorted(outputs)}",)
        if not fits(found.shape, shape):
            have = "have" if plural else "has"
            return (f"{wanted.name} {have} shape {found.shape}, expected {_shown(shape)}",)
        if not same_kind(found.dtype, wanted.dtype):
            return (f"{wanted.name} {'are' if plural else 'is'} {found.dtype}, expected {wanted.dtype}",)
    problems = [] if spec.task != CLASSIFICATION else _unknown_classes(outputs, spec)
    for name, value in outputs.items():
        broken = np.argwhere(~np.isfinite(value))
        if len(broken):
            what = f"values of {name}" if spec.outputs else name
            problems.append(
                f"{len(broken)} {what} are NaN or infinite, first in {spec.sample_word} {int(broken[0, 0])}"
            )
    return tuple(problems)


def _unknown_classes(outputs: Mapping[str, Array], spec: ModelSpec) -> list[str]:
    """Class numbers that the network cannot mean: it has fewer classes."""
    if not spec.gives_numbers:
        return []
    found, classes = class_of_each(outputs, spec), spec.network.classes
    wrong = np.flatnonzero((found < 0) | (found >= classes))
    if not len(wrong):
        return []
    row = int(wrong[0])
    said = f"{spec.class_tensor.name} gives the class {found[row]} for {spec.sample_word} {row}"
    return [f"{said}, but there are {classes} classes, from 0 to {classes - 1}"]


def classes_given(outputs: Mapping[str, Array], spec: ModelSpec) -> Array:
    """The columns that tell the class of each image, (N, columns): its logits, or its class number in one."""
    found = outputs[spec.class_tensor.name]
    return found.reshape(len(found), -1) if spec.gives_numbers else found


def class_of_each(outputs: Mapping[str, Array], spec: ModelSpec) -> NDArray[np.int64]:
    """The class of each image, (N,): that of the largest logit, or the number that the network gives."""
    found = classes_given(outputs, spec)
    return np.asarray(found[:, 0] if spec.gives_numbers else found.argmax(1), np.int64)


def same_kind(found: np.dtype[Any], wanted: str) -> bool:
    """Whether an output has the type that it should, or is another integer: compilers may give 32 bits for 64."""
    return found == wanted or (found.kind in "iu" and np.dtype(wanted).kind in "iu")


def fits(found: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    """Whether a shape is the wanted one, where a name is any size."""
    return len(found) == len(wanted) and all(
        isinstance(one, str) or one == other for one, other in zip(wanted, found, strict=True)
    )


def _shown(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def run_images(session: Session, pixels: Pixels | Inputs, spec: ModelSpec, batch: int = RUN_BATCH) -> dict[str, Array]:
    """Outputs of all images, (N, ...) each. The fill of a last batch is cut off; a wrong number of rows is left to be seen.

    An engine's batches are within its profile, whatever ``batch`` says.
    """
    low, high = batch_limits(session)
    batch = min(max(batch, low), high)
    last = len(pixels) % batch
    if 0 < last < low:
        filled = run_images(session, np.concatenate([pixels, np.repeat(pixels[-1:], low - last, axis=0)]), spec, batch)
        return {name: value[: len(pixels)] if len(value) >= len(pixels) else value for name, value in filled.items()}
    return joined(outputs for outputs, _ in outputs_by_batch(session, pixels, spec, batch))


def joined(batches: Iterable[Mapping[str, Array]]) -> dict[str, Array]:
    """The outputs of all batches by name, (N, ...) each."""
    parts: dict[str, list[Array]] = {}
    for outputs in batches:
        for name, value in outputs.items():
            parts.setdefault(name, []).append(value)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def outputs_by_batch(
    session: Session, crops: Iterable[Pixels | Inputs], spec: ModelSpec, batch: int
) -> Iterator[tuple[dict[str, Array], int]]:
    """The outputs of crops, a batch at a time, and how many images each holds."""
    return run_batches(session, batches_of(crops, spec, session.inputs, batch))


def run_batches(
    session: Session, batches: Iterable[tuple[dict[str, Array], int]]
) -> Iterator[tuple[dict[str, Array], int]]:
    """The outputs of each batch of feeds, and how many images it holds. The fill of a fixed batch is cut off."""
    for feeds, count in batches:
        fed = len(feeds[session.inputs[0].name])
        outputs = session.run(feeds)
        yield {k: v[:count] if v.shape[:1] == (fed,) else np.atleast_1d(v) for k, v in outputs.items()}, count


def batch_limits(session: Session) -> tuple[int, int]:
    """The smallest and the largest batch that a session takes: an engine's profile has limits, others have none."""
    profile: Mapping[str, tuple[tuple[int, ...], ...]] | None = getattr(session, "profile", None)
    if profile is None:
        return 1, sys.maxsize
    low, _, high = profile[session.inputs[0].name]
    return low[0], high[0]


def one_batch(session: Session, pixels: Pixels, spec: ModelSpec, size: int = RUN_BATCH) -> dict[str, Array]:
    """Feeds of ``size`` images, or as near to that as the session takes; images are repeated if there are fewer."""
    fixed = session.inputs[0].shape[0]
    low, high = (fixed, fixed) if isinstance(fixed, int) else batch_limits(session)
    wanted = min(max(min(size, len(pixels)), low), high)
    return feeds_of(np.resize(pixels, (wanted, *pixels.shape[1:])), spec, session.inputs)

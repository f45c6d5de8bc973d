"""Which of an engine's optimization profiles takes what it is fed: decided from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from skdeploy.core.errors import UsageError

IMAGE_DIMENSIONS: Final = ("batch", "channels", "height", "width")

Shape = Sequence[int]
Limits = tuple[tuple[int, ...], ...]  # the smallest, the best and the largest shape of one input
Profile = Mapping[str, Limits]  # by input


def choose_profile(shapes: Mapping[str, Shape], profiles: Sequence[Profile]) -> int:
    """The number of the profile that holds all of ``shapes``, and of several the one whose best shapes are nearest.

    Nearest by ratio: a batch of 4 is as far from a best batch of 2 as from one of 8. Of two as near, the first.
    Raises UsageError, with what every profile takes, if none holds them.
    """
    holding = [number for number, profile in enumerate(profiles) if _outside(shapes, profile) is None]
    if holding:
        return min(holding, key=lambda number: _distance(shapes, profiles[number]))
    name, axis = _outside(shapes, profiles[0]) or ("", 0)  # the first holds them no more than the others
    shape = shapes[name]
    whose = "the engine's profile" if len(profiles) == 1 else f"the engine's {len(profiles)} profiles"
    taken = "; or ".join(_limits_text(profile) for profile in profiles)
    raise UsageError(
        f"input {name!r} has shape {tuple(shape)}: {dimension(axis, len(shape))} {shape[axis]} is outside {whose}",
        advice=f"the engine takes {taken}; build an engine with a wider profile",
    )


def dimension(axis: int, rank: int) -> str:
    """A plan keeps no names of dimensions: batch, and of an image's four the usual ones."""
    return IMAGE_DIMENSIONS[axis] if axis == 0 or rank == len(IMAGE_DIMENSIONS) else f"dimension_{axis}"


def _outside(shapes: Mapping[str, Shape], profile: Profile) -> tuple[str, int] | None:
    """The first input and axis that the profile does not hold."""
    for name, shape in shapes.items():
        for axis, (size, low, _, high) in enumerate(zip(shape, *profile[name], strict=True)):
            if not low <= size <= high:
                return name, axis
    return None


def _distance(shapes: Mapping[str, Shape], profile: Profile) -> float:
    return sum(
        abs(math.log(size / best))
        for name, shape in shapes.items()
        for size, best in zip(shape, profile[name][1], strict=True)
    )


def _limits_text(profile: Profile) -> str:
    """Describe the sizes that an engine takes, such as "batch 1 to 8, best at 4", or its static shapes."""
    parts = []
    for name, (lows, bests, highs) in profile.items():
        changing = [
            f"{dimension(axis, len(lows))} {low} to {high}, best at {best}"
            for axis, (low, best, high) in enumerate(zip(lows, bests, highs, strict=True))
            if low != high
        ]
        said = ", ".join(changing) or f"shape {lows}"
        parts.append(f"{name}: {said}" if len(profile) > 1 else said)
    return "; ".join(parts)

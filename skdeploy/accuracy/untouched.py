"""Does a restoration improve its inputs? If FP32 itself does not, a drop of its figure says nothing."""

from __future__ import annotations

from typing import Final

CAUSES: Final = "its pixels may be prepared otherwise than in training, or the targets belong to other inputs"
CHECK: Final = (
    "check mean and std in the card (0 and 1 for pixels of 0 to 1, 0.5 and 0.5 for -1 to 1) and the pairs: `skdeploy predict` "
    "writes what the network makes of an image"
)


def useless(name: str, figure: str, unit: str, reached: float, untouched: float | None, sign: int = 1) -> str:
    """Why a figure says nothing: it is not better than that of the inputs as they are. Empty if it is, or if nobody knows."""
    if untouched is None or sign * reached > sign * untouched:
        return ""
    values = [f"{value:.4g} {unit}".rstrip() for value in (reached, untouched)]
    return f"{name} reaches {values[0]} of {figure}, not better than the inputs as they are ({values[1]})"

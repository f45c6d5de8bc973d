"""How a layout says what its keys mean: patterns of foreign keys, and the canonical key that each stands for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

# Named parts of a pattern: stage, unit and branch by number, p for "conv" or "bn", t for what a tensor is.
S: Final = r"(?P<s>\d+)"
U: Final = r"(?P<u>\d+)"
M: Final = r"(?P<m>\d+)"
PART: Final = r"(?P<p>conv|bn)"
CONV: Final = r"(?P<t>weight|bias)"
NORM: Final = r"(?P<t>weight|bias|running_mean|running_var|num_batches_tracked)"


class Rules:
    """An ordered table of (pattern, canonical key). A pattern matches a whole key; ``{s}``, ``{u}``, ``{m}``, ``{p}`` and
    ``{t}`` in the canonical key are what it matched, stages, units and branches counted from zero.
    ``unit_step`` is 2 where units alternate with something else in their stage.
    """

    def __init__(
        self,
        *table: tuple[str, str],
        first_stage: int = 0,
        first_unit: int = 0,
        first_branch: int = 0,
        unit_step: int = 1,
    ) -> None:
        self._table = [(re.compile(pattern), canonical) for pattern, canonical in table]
        self._first = {"s": first_stage, "u": first_unit, "m": first_branch}
        self._unit_step = unit_step

    def canonical(self, key: str) -> str | None:
        """The canonical key, or None if no pattern matches."""
        for pattern, canonical in self._table:
            match = pattern.fullmatch(key)
            if match:
                return canonical.format(**{name: self._counted(name, text) for name, text in match.groupdict().items()})
        return None

    def _counted(self, name: str, text: str) -> str:
        if name not in self._first:
            return text
        number = int(text) - self._first[name]
        return str(number // self._unit_step if name == "u" else number)


@dataclass(frozen=True)
class Implied:
    """What a layout's forward does that its weights do not show.

    ``dilations`` are those of 3x3 branches in order; ``softmax`` means that its forward ends in one, so that what it returns
    is not logits; ``note`` is what else a user must know; ``split_input`` decides where "half of the channels" and "two
    groups" have equal shapes.
    """

    family: str
    dilations: tuple[int, ...] = (1, 2, 3)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    stem_stride: int = 2
    max_pool: bool = True
    ceil_mode: bool = False
    shortcut: Literal["conv", "avg_pool", "padded_avg_pool"] = "conv"
    split_input: bool = False
    softmax: bool = False
    note: str = ""

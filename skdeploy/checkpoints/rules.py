"""How a layout says what its keys mean: patterns of foreign keys, and the canonical key that each stands for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
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


# Our module to a pattern of theirs; two patterns are a convolution, our ``.conv``, and its normalisation, our ``.bn``.
Names = Mapping[str, str | tuple[str, str]]


def named(network: Names, unit: str, parts: Names, **counted: int) -> Rules:
    """Rules for keys as PyTorch writes them, ``<module>.<tensor>``; ``parts`` are inside of what ``unit`` matches.

    ``counted`` are the keywords of ``Rules``.
    """
    return Rules(*_rows(network), *_rows(parts, rf"{unit}\.", "stages.{s}.{u}."), **counted)


def _rows(names: Names, theirs: str = "", ours: str = "") -> Iterator[tuple[str, str]]:
    for module, patterns in names.items():
        pairs = zip((f"{module}.conv", f"{module}.bn"), patterns, strict=True)
        for name, pattern in [(module, patterns)] if isinstance(patterns, str) else pairs:
            tensor = NORM if name.endswith(("bn", "norm", "{p}")) else CONV
            yield rf"{theirs}{pattern}\.{tensor}", f"{ours}{name}.{{t}}"


@dataclass(frozen=True)
class Implied:
    """Properties of a layout's forward that its weights do not show.

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


@dataclass(frozen=True)
class Layout:
    """One implementation's keys, and what its forward implies; ``variants``: its other layouts, by a key that tells."""

    name: str
    rules: Rules
    implied: Implied
    variants: Mapping[str, Layout] = field(default_factory=dict)

    def of(self, keys: Collection[str]) -> Layout:
        """The layout, or its variant, that these keys have."""
        return next((layout for key, layout in self.variants.items() if key in keys), self)

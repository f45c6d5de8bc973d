"""The findings on a subject: sections of typed blocks. Each medium has one renderer for all of them.

The terminal prints a section (``terminal.py``), the page draws it (``page.py``), ``markdown.py`` and ``junit.py`` write it for
CI. A judged fact is a ``Finding``, or a row of a ``Table`` that names its test case. Drawings and folds are for the page only.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal

from skdeploy.backends.metrics import decibels_text
from skdeploy.core.precision import PRECISIONS

Tone = Literal["", "good", "warn", "bad"]
Outcome = Literal["pass", "fail", "undecided", "skip", "note"]
TONES: Final[dict[Outcome, Tone]] = {"pass": "good", "fail": "bad", "undecided": "warn", "skip": "", "note": ""}
MAX_ROWS: Final = 400  # of a table: keeps the file small, and nobody reads on; the JSON in the bundle has them all
# Bidirectional controls reorder the text around them, line and paragraph separators break it: names must show what they are.
INVISIBLE: Final = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


class Trusted(str):
    """Markup that this package has built and escaped: templates put it in as it is."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


def visible(text: str) -> str:
    """Text in which control and formatting characters, bidirectional ones among them, are shown as their code points."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) in INVISIBLE else c for c in text)


@dataclass(frozen=True)
class Cell:
    """One cell of a table: ``sort`` is what sorts it, if not its text; ``hint`` shows when pointed at, ``note`` below.

    ``outcome``: the row is judged, and so.
    """

    text: str
    sort: float | str | None = None
    tone: Tone = ""
    hint: str = ""
    code: bool = False
    note: str = ""
    outcome: Outcome | None = None

    @property
    def whole(self) -> str:
        """The text with its note, on one line."""
        return f"{self.text} ({self.note})" if self.note else self.text

    @property
    def key(self) -> str:
        """The sort key of a cell; a missing number sorts as an empty string."""
        value = self.text if self.sort is None else self.sort
        if isinstance(value, float):
            return repr(value) if not math.isnan(value) else ""
        return value


@dataclass(frozen=True)
class Column:
    """A column: numbers are set to the right and sorted as numbers. ``hint`` says what it means."""

    label: str
    numeric: bool = False
    hint: str = ""


def columns(*labels: str | tuple[str, str]) -> tuple[Column, ...]:
    """Columns by their labels, with hints where there are two texts. A label that begins with ``>`` heads numbers."""
    pairs = ((label, "") if isinstance(label, str) else label for label in labels)
    return tuple(Column(label.removeprefix(">"), label.startswith(">"), hint) for label, hint in pairs)


@dataclass(frozen=True)
class Table:
    """Rows under a caption. Every row has one cell for each column.

    ``least``: the number of columns that a narrow terminal must show; of the others it shows as many as fit. 0 means all.
    ``notes_last``: a narrow terminal leaves the notes of numbers out before it leaves out a column. ``group`` and ``case``:
    each row is a test case of JUnit, named ``case`` with ``{0}`` for the first cell. A row with an empty cell in its name is
    not a test case. Its outcome is that of the cell that has one.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    source: str = ""
    least: int = 0
    notes_last: bool = False
    group: str = ""
    case: str = ""

    @property
    def shown(self) -> tuple[tuple[Cell, ...], ...]:
        return self.rows[:MAX_ROWS]

    def without(self, *labels: str) -> Table:
        """The table without these columns."""
        kept = [place for place, column in enumerate(self.columns) if column.label not in labels]
        rows = tuple(tuple(row[place] for place in kept) for row in self.rows)
        return replace(self, columns=tuple(self.columns[place] for place in kept), rows=rows)

    @property
    def left_out(self) -> int:
        return len(self.rows) - len(self.shown)


@dataclass(frozen=True)
class Legend:
    """A series' name and the number of its style, 0..4; without ``line`` it is drawn as marks alone."""

    style: int
    name: str
    line: bool = True


@dataclass(frozen=True)
class Figure:
    """One drawing in two widths: the page shows the one that fits, so that text keeps its size."""

    kind: ClassVar[str] = "figure"
    title: str
    caption: str
    wide: Trusted
    narrow: Trusted
    legend: tuple[Legend, ...] = ()


@dataclass(frozen=True)
class Panels:
    """Small drawings of one kind, as many in a row as fit, with one legend."""

    kind: ClassVar[str] = "panels"
    title: str
    caption: str
    panels: tuple[Trusted, ...]
    legend: tuple[Legend, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A PNG file in base64, ``width`` x ``height`` pixels. ``alt`` says what it shows to those who do not see it."""

    label: str
    alt: str
    png: str
    width: int
    height: int


@dataclass(frozen=True)
class Pictures:
    """Pictures in one row. ``swatches`` are colours, as ``#rrggbb``, and their names; ``more`` stands for the others."""

    kind: ClassVar[str] = "pictures"
    title: str
    caption: str
    pictures: tuple[Picture, ...]
    swatches: tuple[tuple[str, str], ...] = ()
    more: str = ""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Finding:
    """One judged fact. ``group`` and ``name`` identify it from run to run; ``text`` says what was found, ``detail`` the rest.

    ``undecided``: somebody has to act. ``skip``: not possible here. ``note``: there was nothing to hold it against.
    """

    kind: ClassVar[str] = "finding"
    group: str
    name: str
    outcome: Outcome
    text: str
    detail: str = ""

    @property
    def tone(self) -> Tone:
        return TONES[self.outcome]


@dataclass(frozen=True)
class Bullets:
    """Short sentences, one below the other."""

    kind: ClassVar[str] = "bullets"
    items: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """Names and values; ``title`` says whose, where they are read on one line."""

    kind: ClassVar[str] = "facts"
    rows: tuple[tuple[str, str], ...]
    title: str = ""

    @property
    def line(self) -> str:
        return f"{self.title}: " + "; ".join(f"{label} {value}" for label, value in self.rows)


@dataclass(frozen=True)
class Absent:
    """A missing result, and the command that makes it, if any. ``outdated``: it exists, but for other artifacts."""

    kind: ClassVar[str] = "absent"
    text: str
    command: str = ""
    outdated: bool = False


@dataclass(frozen=True)
class Command:
    """A command to type, and what it does."""

    kind: ClassVar[str] = "command"
    text: str
    command: str


@dataclass(frozen=True)
class Fold:
    """Blocks that are closed at first."""

    kind: ClassVar[str] = "fold"
    summary: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Station:
    """One artifact on the line. ``share`` is its size as a part of the largest one's."""

    path: str
    does: str
    made_from: tuple[str, ...]
    precision: str
    size: str
    share: float
    sha256: str
    seconds: str
    state: str
    tone: Tone
    minor: bool


@dataclass(frozen=True)
class Line:
    """The artifacts in the order of the line."""

    kind: ClassVar[str] = "line"
    stations: tuple[Station, ...]


Block = Table | Figure | Panels | Pictures | Text | Finding | Bullets | Facts | Absent | Command | Fold | Line


@dataclass(frozen=True)
class Section:
    """All that is found on one subject, under a heading."""

    anchor: str
    title: str
    lead: str
    blocks: tuple[Block, ...]


def heading(text: str) -> str:
    """Begins with a capital, if its first word is a word: precisions, files and modules are names."""
    word, _, rest = text.partition(" ")
    plain = word.rstrip(",:")
    first = (
        word.replace(plain, PRECISIONS[plain].words)
        if plain in PRECISIONS
        else word.capitalize()
        if plain.isalpha() and plain.islower()
        else word
    )
    return f"{first} {rest}" if rest else first


def sentence(text: str) -> str:
    """Turn a terminal's line into prose: a capital at the start, a full stop at the end."""
    return heading(text) + ("" if text.endswith((".", "!", "?", ":")) or not text else ".")


def counted(number: int, noun: str) -> str:
    """``1 image``, ``2,000 images``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def size_text(count: int) -> str:
    """Bytes in words: 1.28 MB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count / 1e3:.1f} kB"


def decibels(value: float | None) -> Cell:
    return Cell(decibels_text(value), -math.inf if value is None else value)


def percent_text(share: float | None, digits: int = 2) -> str:
    """Nothing is called 100 % but all of it."""
    if share is None:
        return "none"
    text = f"{100 * share:.{digits}f}"
    return f">{100 - 10**-digits:.{digits}f} %" if share < 1 and float(text) == 100 else f"{text} %"


def number(value: float, form: str = ".3g") -> Cell:
    return Cell(format(value, form), float(value))


def percent(share: float) -> Cell:
    return Cell(percent_text(share, 1), share)


def size(bytes_: int) -> Cell:
    return Cell(size_text(bytes_), float(bytes_))


def count(value: int) -> Cell:
    return Cell(f"{value:,}", float(value))


def name(text: str) -> Cell:
    """A tensor, module, artifact or file."""
    return Cell(text or "(top level)", code=True)


def digest(sha256: str) -> Cell:
    """The first digits of a digest, which is whole where one points at it."""
    return Cell(sha256[:12], hint=sha256, code=True)


def more(items: Sequence[object], shown: int) -> str:
    """The words for those that are not named."""
    return f" and {len(items) - shown:,} more" if len(items) > shown else ""


JUDGED: Final[dict[str, tuple[str, Tone, Outcome]]] = {
    "pass": ("verified", "good", "pass"),
    "fail": ("failed", "bad", "fail"),
    "receipt": ("verified by receipt", "good", "pass"),
    "unproven": ("not run yet", "", "skip"),
    "not compared": ("not compared", "warn", "skip"),
    "reference": ("reference", "", "note"),
    "recorded": ("recorded", "", "note"),
}
"""What a comparison, a check or a receipt came to: its word, how it is coloured, and what it is to a CI job."""


def judged(state: str, note: str = "", hint: str = "") -> Cell:
    """One of ``JUDGED``, with what there is to add and, where one points at it, the reason."""
    word, tone, outcome = JUDGED[state]
    return Cell(word, tone=tone, note=note, hint=hint, outcome=outcome)

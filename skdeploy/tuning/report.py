"""The result of ``skdeploy tune``: every way that was tried, and the one that was chosen. ``tune --json`` prints it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from skdeploy.accuracy import untouched
from skdeploy.accuracy.gate import PairedReport
from skdeploy.accuracy.quality import QualityDrop
from skdeploy.core.errors import AccuracyError
from skdeploy.core.spec import Frozen
from skdeploy.images import chance
from skdeploy.tuning.candidates import Candidate
from skdeploy.tuning.error import ErrorReport

Compared = PairedReport | QualityDrop | ErrorReport
Sample = Literal["labelled image", "pair", "image", "sample"]
WITHIN = ("within the budget", "beyond the budget")
Strings = Annotated[tuple[str, ...], Field(strict=False)]


class Tried(Frozen):
    """One way. ``sqnr_db``: its outputs against FP32's on the screening images; ``pair``, of the images that choose, only of
    those that came through the screening. ``on_front``: no other of these is better in all that was asked for.

    ``predicted_ms``: the planner's floor on the device that was named; ``measured_ms``: a median on this machine. ``refused``:
    why there is no such graph, or why it gives no logits: then it has no figures.
    """

    candidate: Candidate
    name: str
    sqnr_db: float
    int8_mac_share: float
    pair: Compared | None = None
    predicted_ms: float | None = None
    measured_ms: float | None = None
    refused: str = ""
    on_front: bool = False
    chosen: bool = False


def drop_unit(drop: Compared) -> str:
    """The unit of a drop, and of which figure it is."""
    if isinstance(drop, ErrorReport):
        return "dB of SQNR"
    if isinstance(drop, QualityDrop):
        return f"{drop.unit} of {drop.figure}" if drop.unit else drop.figure
    return "points of top-1"


class _OfSamples(Frozen):
    """``sample`` is what ``--data`` holds, or what of it is used."""

    sample: Annotated[Sample, Field(exclude_if=lambda sample: sample == "labelled image")] = "labelled image"

    @property
    def one(self) -> str:
        """In one word."""
        return self.sample.split()[-1]


class TunePlan(_OfSamples):
    """The ways that a run would try, by name, and how many images screen, choose and confirm."""

    candidates: Strings
    screening: int
    choosing: int
    confirming: int


class TuneReport(_OfSamples):
    """``confirmed`` is the winner on images that chose nothing, so that the number of candidates does not flatter it.
    ``max_drop`` with a truth; without one ``min_sqnr_db``, or neither.

    ``images`` are all of ``--data``; ``screening`` is a part of ``choosing``. ``unreadable`` images count nowhere.
    """

    model: str
    dataset: str
    dataset_sha256: str
    images: int
    screening: int
    choosing: int
    confirming: int
    max_drop: float | None
    min_sqnr_db: Annotated[float | None, Field(exclude_if=lambda limit: limit is None)] = None
    confidence: float
    device: str | None
    tried: Annotated[tuple[Tried, ...], Field(strict=False)]
    winner: str
    confirmed: Compared
    recipe: str | None
    export: str
    seconds: float

    @property
    def unit(self) -> str:
        """The unit of the drop."""
        return drop_unit(self.confirmed)

    @property
    def headline(self) -> str:
        """The result in a few words."""
        found = self.confirmed
        if found.decision is None and isinstance(found, ErrorReport):
            return f"best: {self.winner}, {found.sqnr_db:.2f} dB"
        said = ("above the limit", "below the limit") if isinstance(found, ErrorReport) else WITHIN
        words = dict(zip(("pass", "fail"), said, strict=True)).get(found.decision or "", "undecided")
        return f"best: {self.winner}, {words}"

    @property
    def _wider(self) -> str:
        return "allow more" if self.min_sqnr_db is None else "set a lower limit"

    @property
    def limit(self) -> str:
        """The option that the winner is judged by; empty if there is none."""
        if self.min_sqnr_db is not None:
            return f"--min-sqnr {self.min_sqnr_db:g}"
        return "" if self.max_drop is None else f"--max-drop {self.max_drop:g}"

    def check(self, *, allow_inconclusive: bool = False) -> None:
        """Raises AccuracyError unless the winner keeps the budget, if there is one, on the images that chose nothing."""
        pair = self.confirmed
        if pair.decision == "fail":
            raise AccuracyError(
                f"no way of {len(self.tried)} keeps {self.limit}; the best is {self.winner}: {pair.sentence}",
                advice=f"calibrate on other or more images, {self._wider}, or export with --fp16",
            )
        if pair.decision == "inconclusive" and not allow_inconclusive:
            check = untouched.CHECK if isinstance(pair, QualityDrop) else chance.CHECK
            advice = f"{check}; or" if pair.guessing else f"give more {self.sample}s, {self._wider}, or"
            raise AccuracyError(f"{self.winner}: {pair.sentence}", advice=f"{advice} give --allow-inconclusive")

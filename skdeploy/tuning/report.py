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

Strings = Annotated[tuple[str, ...], Field(strict=False)]


class Tried(Frozen):
    """One way. ``sqnr_db``: its logits against FP32's on the screening images; ``pair``, of the images that choose, only of
    those that came through the screening. ``on_front``: no other of these is better in all that was asked for.

    ``predicted_ms``: the planner's floor on the device that was named; ``measured_ms``: a median on this machine. ``refused``:
    why there is no such graph, or why it gives no logits: then it has no figures.
    """

    candidate: Candidate
    name: str
    sqnr_db: float
    int8_mac_share: float
    pair: PairedReport | QualityDrop | None = None
    predicted_ms: float | None = None
    measured_ms: float | None = None
    refused: str = ""
    on_front: bool = False
    chosen: bool = False


def drop_unit(drop: PairedReport | QualityDrop) -> str:
    """The unit of a drop, and of which figure it is."""
    if isinstance(drop, QualityDrop):
        return f"{drop.unit} of {drop.figure}" if drop.unit else drop.figure
    return "points of top-1"


class _OfSamples(Frozen):
    """``sample`` is what ``--data`` holds."""

    sample: Annotated[Literal["labelled image", "pair"], Field(exclude_if=lambda sample: sample != "pair")] = (
        "labelled image"
    )

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

    ``images`` are all of ``--data``; ``screening`` is a part of ``choosing``. ``unreadable`` images count nowhere.
    """

    model: str
    dataset: str
    dataset_sha256: str
    images: int
    screening: int
    choosing: int
    confirming: int
    max_drop: float
    confidence: float
    device: str | None
    tried: Annotated[tuple[Tried, ...], Field(strict=False)]
    winner: str
    confirmed: PairedReport | QualityDrop
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
        words = {"pass": "within the budget", "fail": "beyond the budget"}.get(
            self.confirmed.decision or "", "undecided"
        )
        return f"best: {self.winner}, {words}"

    def check(self, *, allow_inconclusive: bool = False) -> None:
        """Raises AccuracyError unless the winner keeps the budget on the images that chose nothing."""
        pair = self.confirmed
        if pair.decision == "fail":
            raise AccuracyError(
                f"no way of {len(self.tried)} keeps --max-drop {self.max_drop:g}; the best is {self.winner}: {pair.sentence}",
                advice="calibrate on other or more images, allow more, or export with --fp16",
            )
        if pair.decision == "inconclusive" and not allow_inconclusive:
            check = untouched.CHECK if isinstance(pair, QualityDrop) else chance.CHECK
            advice = f"{check}; or" if pair.guessing else f"give more {self.sample}s, allow more, or"
            raise AccuracyError(f"{self.winner}: {pair.sentence}", advice=f"{advice} give --allow-inconclusive")

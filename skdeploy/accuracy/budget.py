"""The gate on drops, the same for accuracy against labels and for figures of pairs: its words, its verdict, its errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from skdeploy.accuracy.statistics import Decision
from skdeploy.core.errors import AccuracyError


class Judged(Protocol):
    """A drop of one artifact against another. ``guessing``: why the drop says nothing, whatever it is."""

    @property
    def max_drop(self) -> float | None: ...
    @property
    def decision(self) -> Decision | None: ...
    @property
    def images_to_decide(self) -> int | None: ...
    @property
    def guessing(self) -> str: ...


class Kept(Protocol):
    """A comparison with a baseline."""

    @property
    def failures(self) -> tuple[str, ...]: ...


D = TypeVar("D", bound=Judged)


def sentence_of(measured: str, drop: Judged, samples: str, causes: str) -> str:
    """A measured drop, and what the gate makes of it. ``causes``: of a network that guesses; ``samples``: "images"."""
    if drop.decision == "pass":
        return f"{measured}: within the budget of {drop.max_drop:g}"
    if drop.decision == "fail":
        return f"{measured}: beyond the budget of {drop.max_drop:g}"
    if drop.decision is None:
        return measured
    if drop.guessing:
        return f"{measured}: undecided, since {drop.guessing}: {causes}"
    if drop.images_to_decide is None:
        return f"{measured}: exactly at the budget of {drop.max_drop:g}, so more {samples} may not decide it"
    return (
        f"{measured}: too few {samples} to tell whether that is within the budget of {drop.max_drop:g}; about "
        f"{drop.images_to_decide:,} such {samples} would decide"
    )


def worst_decision(drops: Iterable[Judged], baseline: Kept | None) -> Decision | None:
    """The worst decision of the gate and the baseline; None without either."""
    decisions = [drop.decision for drop in drops]
    if baseline is not None:
        decisions.append("fail" if baseline.failures else "pass")
    order: tuple[Decision, ...] = ("fail", "inconclusive", "pass")
    return next((decision for decision in order if decision in decisions), None)


def require_within_budget(
    drops: Sequence[D],
    baseline: Kept | None,
    *,
    lost: Callable[[D], str],
    allowed: Callable[[D], str],
    less: str,
    check: str,
    samples: str,
    more: str,
    allow_inconclusive: bool,
) -> None:
    """Raises AccuracyError for a drop that is beyond the budget, or not shown to be within it.

    ``lost`` and ``allowed`` name a drop and its budget. Advice: ``less``, to lose less; ``check``, where the network guesses;
    ``more``, where there are too few ``samples``.
    """
    failed = [lost(drop) for drop in drops if drop.decision == "fail"]
    failed += baseline.failures if baseline is not None else ()
    if failed:
        raise AccuracyError(f"accuracy is out of its budget: {'; '.join(failed)}", advice=less)
    doubtful = [drop for drop in drops if drop.decision == "inconclusive"]
    if not doubtful or allow_inconclusive:
        return
    if guessing := next((drop.guessing for drop in doubtful if drop.guessing), ""):
        raise AccuracyError(f"accuracy cannot be judged: {guessing}", advice=f"{check}; or give --allow-inconclusive")
    raise AccuracyError(
        f"too few {samples} to decide whether accuracy is within its budget: {', '.join(map(allowed, doubtful))}",
        advice=f"give {more} (--data), a wider budget (--max-drop), or --allow-inconclusive",
    )

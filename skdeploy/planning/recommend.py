"""Which precision, grouped convolutions in which, and merged or not: the least of the floors, which is an estimate."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from skdeploy.core.architecture import Frozen
from skdeploy.core.precision import PRECISIONS, Precision
from skdeploy.core.significant import significant
from skdeploy.planning.layers import Layer
from skdeploy.planning.plain import Plain
from skdeploy.planning.roofline import Peaks, Work, costs, floor_ms, types_of, work_of
from skdeploy.planning.tensor_cores import merge_factor

# A floor that is this little lower is no reason to give up exactness: kernels differ from their peaks by more.
WORTH: Final = 0.10
# So near to WORTH the table of devices decides, not the graph: Orin Nano's INT8 is 20 TOPS in its data sheet, and 20.5 by its
# SMs and clock.
CLOSE: Final = 0.03


class Choice(Frozen):
    """A way to export, and the floor it has on one device. ``options``: of ``skdeploy export``."""

    options: str
    floor_ms: float


class Recommendation(Frozen):
    """``options`` is what to export with; ``choices`` all that were weighed, fastest first; ``reason`` in words.

    ``undecided`` is another way that is as good a choice by these estimates, empty if there is none: then measure both.
    """

    options: str
    reason: str
    choices: tuple[Choice, ...]
    undecided: str = ""
    estimate: bool = True


def ways_to_export(plain: Plain, layers: Collection[Layer]) -> dict[str, list[Work]]:
    """The work under each choice of ``skdeploy export``'s options that is weighed, from simple to involved.

    Every precision to weigh that has a peak and is narrower than FP32, an integer one without grouped convolutions
    first; each as it is, then with groups merged into fewer.
    """
    grouped = any(layer.groups > 1 and layer.into_group > 1 for layer in layers)
    ways: dict[str, list[Work]] = {}
    for each in PRECISIONS.values():
        if not each.peak or not each.weighed or each is Precision.FP32:
            continue
        bases = {each.flag: types_of(plain, each)}
        if each.keep_grouped and grouped:
            bases = {f"{each.flag} {each.keep_grouped}": types_of(plain, each, keep_grouped=True), **bases}
        ways |= {options: work_of(layers, types) for options, types in bases.items()}
        for options, types in bases.items():
            for regroup in groups_left(layers):
                ways[f"{options} --regroup {regroup}"] = work_of(layers, types, regroup)
    return ways


def recommend(ways: Mapping[str, Collection[Work]], device: Peaks) -> Recommendation:
    """Weighs what ``ways_to_export`` found by its floors on a device.

    The first, FP16, stays unless another is lower by a tenth; no option that makes it less than a tenth lower is added.
    """
    floors = {options: floor_ms(costs(works, device)) for options, works in ways.items()}
    best, rival = decide(floors)
    return Recommendation(
        options=best,
        reason=_reason(floors, best, rival),
        choices=tuple(Choice(options=each, floor_ms=floors[each]) for each in sorted(floors, key=floors.__getitem__)),
        undecided=rival,
    )


def decide(floors: Mapping[str, float]) -> tuple[str, str]:
    """The options to export with: the last, from simple to involved, that beats all before it by more than WORTH.

    And the simplest others that a few percent in the table would have made best, empty if there are none.
    """
    order = list(floors)
    best = order[0]
    for place, options in enumerate(order):
        if all(gain(floors, options, each) > WORTH for each in order[:place]):
            best = options
    simpler = order[: order.index(best)]
    close = [
        *(each for each in simpler if gain(floors, best, each) <= WORTH + CLOSE),
        *(each for each in order if gain(floors, each, best) >= WORTH - CLOSE),
    ]
    return best, close[0] if close else ""


def groups_left(layers: Collection[Layer]) -> list[int]:
    """Every N for which ``export --regroup N`` merges something, the least merging first."""
    counts = {layer.groups for layer in layers if layer.groups > 1}
    return [
        number
        for number in range(max(counts, default=1) - 1, 0, -1)
        if any(merge_factor(layer, number) > 1 for layer in layers)
    ]


def gain(floors: Mapping[str, float], options: str, than: str) -> float:
    """By which part of its floor an option is lower than another."""
    return 1 - floors[options] / floors[than]


def _reason(floors: Mapping[str, float], best: str, rival: str) -> str:
    shown = {options: f"{significant(floor)} ms" for options, floor in floors.items()}
    first, others = next(iter(floors)), [each for each in PRECISIONS.values() if each.flag in floors]
    reason = f"floor {shown[best]} against {shown[first]} of {first}"
    if best == first:
        named = [f"{each.words}'s is {shown[each.flag]}" for each in others if each.flag != first]
        reason = "; ".join([f"floor {shown[best]}", *named])
    if rival:
        lower, higher = sorted((best, rival), key=floors.__getitem__)
        return (
            f"undecided, measure both: {reason}; {rival} has {shown[rival]}, "
            f"{gain(floors, lower, higher):.1%} apart where {WORTH:.0%} decides"
        )
    return reason if best != first else f"{reason}, less than {WORTH:.0%} lower"

"""Which units stay in the fallback, so that INT8 costs no more accuracy than it may: ``export --int8 --max-drop``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field

from skdeploy.backends.metrics import sqnr_db
from skdeploy.core.errors import AccuracyError, UsageError
from skdeploy.core.listing import some
from skdeploy.core.progress import Progress, Silent
from skdeploy.core.spec import Frozen, ModelSpec
from skdeploy.images.labels import FORMS
from skdeploy.quant.effect import Crops, Outcome, Samples
from skdeploy.quant.macs import macs_of
from skdeploy.quant.quantize import quantize
from skdeploy.quant.ranges import Ranges
from skdeploy.quant.truth import POINTS, TOP1, Drop, FigureDrop, Rows, Truth
from skdeploy.quant.units import Unit, all_but, units_of

RANKING_IMAGES: Final = 128  # noise power is a mean over all logits of all images: it settles long before top-1 does
GIVE_BACK: Final = 3  # tries to have a kept unit in INT8 after all, each of which costs a run over all images
SHOWN: Final = 5
MOST_IMAGES: Final = 10_000_000  # more than anybody has: then no number is told

Step = Literal["all INT8", "bisection", "give back"]
Strings = Annotated[tuple[str, ...], Field(strict=False)]


class Probe(Frozen):
    """One mix, run over all images: the units kept out of INT8, and what that gave.

    ``top1`` with labels, ``value`` of pairs: see ``MixedPrecision``.
    """

    step: Step
    kept: Strings
    drop: Drop | FigureDrop
    top1: float | None = None
    value: float | None = None
    int8_mac_share: float


class KeptUnit(Frozen):
    """A unit that stays in the fallback. ``sqnr_db``: of the outputs with only this unit in INT8; ``noise_share``: its part of
    all units' noise so measured; ``mac_share``: the part of the network's multiply-accumulates that it keeps out of INT8.

    The saving is measured by the mix with this unit in INT8 as well: ``sqnr_before`` on the ranking images, in dB; and on all
    images ``drop_before``, the largest drop of those mixes run that had this unit in INT8 and kept all others of
    the final ones. None was run for some units.
    """

    unit: str
    pattern: str
    reason: str
    sqnr_db: float
    noise_share: float
    macs: int
    mac_share: float
    sqnr_before: float
    drop_before: float | None


class MixedPrecision(Frozen):
    """The mix that was found, and how. ``keep`` are all patterns for ``--int8-keep``, those that were given included.

    ``evaluations`` is how many INT8 graphs ran over all images: with one, all INT8 met the budget and nothing was ranked.
    ``ranking_images`` is how many of the images rank units, and ``sqnr_db`` the mix's own on these. Units are chosen on the
    images that the drop is measured on, so it is a little too good.

    With labels, ``fp32_top1`` and ``top1`` are shares; ``fp32_value`` and ``value`` are of another ``figure`` of pairs. The
    drop and its budget are in ``unit``.
    """

    model: str
    dataset: str
    images: int
    max_drop: float
    figure: str = TOP1
    unit: str = POINTS
    fp32_top1: float | None = None
    top1: float | None = None
    fp32_value: float | None = None
    value: float | None = None
    drop: Drop | FigureDrop
    sqnr_db: float
    int8_mac_share: float
    keep: Strings
    kept: Annotated[tuple[KeptUnit, ...], Field(strict=False)]
    units: int
    ranking_images: int
    evaluations: int
    probes: Annotated[tuple[Probe, ...], Field(strict=False)]

    @property
    def notes(self) -> tuple[str, ...]:
        """Describe what the images cannot decide."""
        return _doubts(self.drop, self.max_drop, self.unit)


class _Search:
    """The mixes that were tried. A mix is the set of units that it keeps, and each is run once."""

    def __init__(
        self, samples: Samples, truth: Truth, model: ir.Model, ranges: Ranges, fixed: tuple[str, ...], grouped: bool
    ) -> None:
        self.samples, self.truth, self.model, self.ranges = samples, truth, model, ranges
        self.fixed, self.grouped = fixed, grouped
        spec = samples.spec
        self.units = units_of(model, spec, fixed, keep_grouped=grouped)
        self.total_macs = sum(macs_of(model, spec.one_size).values())
        assert samples.rows is not None  # there is a truth
        self.rows = samples.rows
        self.probes: dict[frozenset[str], Probe] = {}

    def run(self, on: Samples, patterns: Iterable[str], shown: str, *, judged: bool = False) -> Outcome:
        done = quantize(
            self.model, on.spec, self.ranges, (*self.fixed, *patterns), keep_grouped=self.grouped, half=False
        )
        return on.run(done.model, shown, judged=judged)

    def sqnr_db(self, on: Samples, kept: tuple[Unit, ...]) -> float:
        """Of the mix that keeps these."""
        return sqnr_db(1.0, self.run(on, (unit.pattern for unit in kept), _mix(kept)).noise)

    def values(self, rows: Rows) -> dict[str, float]:
        """The figure of a mix, under the name that it has in a report."""
        return {"top1" if self.truth.figure == TOP1 else "value": self.truth.value(rows)}

    def probe(self, kept: Iterable[Unit], step: Step) -> Probe:
        units = tuple(kept)
        names = tuple(unit.name for unit in units)
        if frozenset(names) not in self.probes:
            patterns = (unit.pattern for unit in units)
            rows = self.run(self.samples, patterns, _mix(units), judged=True).rows
            assert rows is not None  # judged
            macs = sum(unit.macs for unit in self.units if unit.name not in names)
            self.probes[frozenset(names)] = Probe(
                step=step,
                kept=names,
                drop=self.truth.drop(self.rows, rows),
                **self.values(rows),
                int8_mac_share=macs / self.total_macs,
            )
        return self.probes[frozenset(names)]


def search(
    model: ir.Model,
    spec: ModelSpec,
    ranges: Ranges,
    crops: Crops,
    truth: Truth | None,
    max_drop: float,
    *,
    keep: tuple[str, ...] = (),
    keep_grouped: bool = False,
    dataset: str = "the images",
    ranking_images: int = RANKING_IMAGES,
    progress: Progress | None = None,
) -> MixedPrecision:
    """The units to keep in the fallback for a drop of at most ``max_drop``, few of them and small ones.

    1. Everything INT8 that may be; if that meets the budget, this is it.
    2. Units are ranked by the noise that each alone brings to the outputs of a few images, per multiply-accumulate: what
       keeping it saves, by what keeping it costs.
    3. Bisection finds how many of the worst must stay, which takes log2(units) runs over all images. It takes for granted that
       keeping more units is not worse; what it ends at was run, so it holds either way.
    4. Of these, up to three that do most of the work are tried in INT8 again, the largest first.

    ``max_drop`` is in the unit of the truth's figure: percentage points of top-1 for labels. ``crops``, ``truth``, ``keep``
    and ``keep_grouped``: see ``measure_sensitivity``; the fallback here is FP32.

    Where FP32 itself only guesses, no drop can be seen and everything stays INT8: a note says so, and the accuracy gate is then
    undecided.

    Raises UsageError: no truth, or a bad one; a budget that makes no sense.
    AccuracyError: no mix meets the budget, not even one with a single unit in INT8.
    """
    if truth is None:
        raise UsageError(f"--max-drop needs labels, but {dataset} has none", advice=FORMS)
    if not 0 <= max_drop <= 100:
        raise UsageError(
            f"--max-drop {max_drop:g}: must be from 0 to 100, in {truth.unit or 'the unit'} of {truth.figure}"
        )
    tell = progress or Silent()
    tell.update("FP32")
    samples = Samples.of(model, spec, crops, truth)
    found = _Search(samples, truth, model, ranges, keep, keep_grouped)
    guessing = truth.guessing(found.rows)
    if guessing:
        tell.note(f"no unit is chosen for the fallback: {guessing}")
    tell.update("everything in INT8")
    best = found.probe((), "all INT8")
    ranked: tuple[Unit, ...] = ()
    noise: dict[str, float] = {}
    few = samples.part(ranking_images)
    if not guessing and not best.drop.fits(max_drop):
        for number, unit in enumerate(found.units, 1):
            tell.update(f"noise of {unit.name}, {number} of {len(found.units)}")
            noise[unit.name] = found.run(few, all_but(model, unit), f"only {unit.name} in INT8").noise
        ranked = tuple(sorted(found.units, key=lambda unit: noise[unit.name] / unit.macs, reverse=True))
        best = _bisect(found, ranked, max_drop, dataset, tell)
        best = _give_back(found, best, max_drop, tell)
    kept = tuple(unit for unit in ranked if unit.name in best.kept)
    if kept:
        tell.update("the gain of the units that are kept")
    return MixedPrecision(
        model=spec.name,
        dataset=dataset,
        images=len(crops),
        max_drop=max_drop,
        figure=truth.figure,
        unit=truth.unit,
        **{f"fp32_{name}": value for name, value in found.values(found.rows).items()},
        top1=best.top1,
        value=best.value,
        drop=best.drop,
        sqnr_db=found.sqnr_db(few, kept),
        int8_mac_share=best.int8_mac_share,
        keep=(*keep, *(unit.pattern for unit in kept)),
        kept=tuple(_explained(unit, kept, found, few, noise) for unit in kept),
        units=len(found.units),
        ranking_images=len(few.crops),
        evaluations=len(found.probes),
        probes=tuple(found.probes.values()),
    )


def _bisect(found: _Search, ranked: tuple[Unit, ...], max_drop: float, dataset: str, tell: Progress) -> Probe:
    """The mix that keeps the fewest of the worst. With all kept nothing would be INT8, so that is not a mix."""
    too_few, enough = 0, len(ranked)
    best: Probe | None = None
    while enough - too_few > 1:
        count = (too_few + enough) // 2
        tell.update(f"{count} of {len(ranked)} units kept")
        probe = found.probe(ranked[:count], "bisection")
        if probe.drop.fits(max_drop):
            enough, best = count, probe
        else:
            too_few = count
    if best is None:
        raise _no_mix(found, max_drop, dataset)
    return best


def _give_back(found: _Search, best: Probe, max_drop: float, tell: Progress) -> Probe:
    """Tries kept units in INT8 again. Not the last of the ranking: bisection has just seen that it is needed."""
    by_name = {unit.name: unit for unit in found.units}
    for name in sorted(best.kept[:-1], key=lambda name: by_name[name].macs, reverse=True)[:GIVE_BACK]:
        tell.update(f"{name} in INT8 again")
        probe = found.probe((by_name[other] for other in best.kept if other != name), "give back")
        if probe.drop.fits(max_drop):
            best = probe
    return best


def _mix(kept: tuple[Unit, ...]) -> str:
    return f"all but {', '.join(unit.name for unit in kept)} in INT8" if kept else "everything in INT8"


def _explained(unit: Unit, kept: tuple[Unit, ...], found: _Search, few: Samples, noise: dict[str, float]) -> KeptUnit:
    others = tuple(other for other in kept if other is not unit)
    without = [
        probe.drop.points
        for names, probe in found.probes.items()
        if unit.name not in names and names.issuperset(other.name for other in others)
    ]
    share = noise[unit.name] / (sum(noise.values()) or 1.0)
    mac_share = unit.macs / found.total_macs
    sqnr = sqnr_db(1.0, noise[unit.name])
    return KeptUnit(
        unit=unit.name,
        pattern=unit.pattern,
        reason=f"alone in INT8 it leaves {sqnr:.1f} dB: {share:.0%} of all units' noise, for {mac_share:.1%} of the "
        "MACs",
        sqnr_db=sqnr,
        noise_share=share,
        macs=unit.macs,
        mac_share=mac_share,
        sqnr_before=found.sqnr_db(few, others),
        drop_before=max(without, default=None),
    )


def _no_mix(found: _Search, max_drop: float, dataset: str) -> AccuracyError:
    best = min(found.probes.values(), key=lambda probe: (probe.drop.points, len(probe.kept)))
    drop, units, figure, unit = best.drop, len(found.units), found.truth.figure, found.truth.unit
    kept = some(best.kept, SHOWN)
    doubts = "".join(f"\n  {doubt}" for doubt in _doubts(drop, max_drop, unit))
    step = 10.0 ** max(-9, int(np.floor(np.log10(max(drop.points, 1e-9)))) - 1) if unit != POINTS else 0.01
    allow = np.ceil(round(drop.points / step, 6)) * step
    return AccuracyError(
        f"no mix of INT8 and the fallback keeps the drop of {figure} within {in_unit(max_drop, unit, 'g')} on "
        f"{drop.images} images of {dataset}:\n  the best loses {in_unit(drop.points, unit)} (standard error "
        f"{digits(drop.standard_error, unit)}) with {len(best.kept)} of {units} units kept out of "
        f"INT8{': ' + kept if kept else ''}{doubts}",
        advice=f"allow more, such as --max-drop {allow:g}; or calibrate on more images or with another "
        "--calib-method; or export with --fp16. `skdeploy sensitivity` shows what each unit costs",
    )


def _doubts(drop: Drop | FigureDrop, max_drop: float, unit: str) -> tuple[str, ...]:
    margin, apart = drop.margin, abs(max_drop - drop.points)
    if apart >= margin:
        return ()
    needed = drop.images * (margin / apart) ** 2 if apart else np.inf
    enough = f"; about {_round_up(needed)} would" if needed < MOST_IMAGES else ""
    lost = f"{digits(drop.points, unit)} +- {in_unit(margin, unit)}"
    doubt = (
        f"the drop is {lost} (95 %): {drop.images:,} images are too few to "
        f"prove whether it is above or below {max_drop:g}{enough}"
    )
    return (doubt,)


def digits(value: float, unit: str) -> str:
    """A drop: points with two decimals, other figures with three digits."""
    return f"{value:.2f}" if unit == POINTS else f"{value:.3g}"


def in_unit(value: float, unit: str, form: str = "") -> str:
    """The same with its unit, which may be empty. ``form`` in place of those digits."""
    return f"{format(value, form) if form else digits(value, unit)} {unit}".rstrip()


def _round_up(count: float) -> str:
    """To two digits: the estimate holds no more."""
    step = 10 ** max(0, int(np.log10(count)) - 1)
    return f"{int(np.ceil(count / step)) * step:,}"

"""The cost of INT8 for each unit: alone in INT8, and alone not in INT8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import onnx_ir as ir
from pydantic import Field

from skdeploy.core.progress import Progress, Silent
from skdeploy.core.spec import Frozen, ModelSpec, SampleWord
from skdeploy.quant.effect import Crops, Effect, Samples
from skdeploy.quant.macs import macs_of
from skdeploy.quant.quantize import quantize
from skdeploy.quant.ranges import Ranges
from skdeploy.quant.truth import TOP1, Truth
from skdeploy.quant.units import all_but, units_of


class UnitSensitivity(Frozen):
    """One unit: the effect of having only it in INT8, and of having all but it in INT8. See ``Unit`` for the rest."""

    unit: str
    pattern: str
    layers: int
    macs: int
    mac_share: float
    parameters: int
    only_on: Effect
    only_off: Effect


class SensitivityReport(Frozen):
    """All units, the one that costs most by itself first. ``macs`` are those of the whole network, gates included.

    ``figure`` is what was measured of pairs, such as PSNR, and ``unit`` that of its numbers; both are empty without pairs.
    """

    model: str
    dataset: str
    images: int
    macs: int
    figure: str = ""
    unit: str = ""
    fp32: Effect
    all_int8: Effect
    units: Annotated[tuple[UnitSensitivity, ...], Field(strict=False)]
    sample: SampleWord = "image"


class MeasuredUnits(Frozen):
    """Some units, in the network's order, and FP32 and all in INT8 on the same samples."""

    images: int
    fp32: Effect
    all_int8: Effect | None
    rows: Annotated[tuple[UnitSensitivity, ...], Field(strict=False)]


def measure_sensitivity(
    model: ir.Model,
    spec: ModelSpec,
    ranges: Ranges,
    crops: Crops,
    truth: Truth | None = None,
    *,
    keep: tuple[str, ...] = (),
    keep_grouped: bool = False,
    dataset: str = "",
    progress: Progress | None = None,
) -> SensitivityReport:
    """Measures every unit of an FP32 graph, with FP32 as the fallback: 2 runs a unit over all samples, and 2 more.

    ``crops`` are uint8 (N, H, W, C) or a sequence of (H, W, C), or samples; read once a run. ``truth`` is what should come out
    of them. ``keep`` and ``keep_grouped`` (see ``place``) hold in every run, so a unit that is kept whole is not measured.

    Raises UsageError: no samples, a truth that does not fit. CalibrationError: see ``quantize``; outputs that are not finite.
    """
    tell = progress or Silent()
    count = len(units_of(model, spec, keep, keep_grouped=keep_grouped))
    found = measure_units(
        model, spec, ranges, crops, truth, range(count), tell, keep=keep, keep_grouped=keep_grouped, whole=True
    )
    return sensitivity_report(model, spec, [found], truth, dataset)


def measure_units(
    model: ir.Model,
    spec: ModelSpec,
    ranges: Ranges,
    crops: Crops,
    truth: Truth | None,
    chosen: range,
    tell: Progress,
    *,
    keep: tuple[str, ...] = (),
    keep_grouped: bool = False,
    whole: bool,
) -> MeasuredUnits:
    """The units at these places, and with ``whole`` all in INT8. FP32 runs whatever is chosen. Raises as
    ``measure_sensitivity``.
    """
    units = units_of(model, spec, keep, keep_grouped=keep_grouped)
    tell.update("FP32")
    samples = Samples.of(model, spec, crops, truth)

    def effect(patterns: tuple[str, ...], shown: str) -> Effect:
        done = quantize(model, spec, ranges, (*keep, *patterns), keep_grouped=keep_grouped, half=False)
        return samples.effect(samples.run(done.model, shown))

    fp32 = samples.effect(samples.exact)
    total = sum(macs_of(model, spec.one_size).values())
    all_int8 = None
    if whole:
        tell.update("all in INT8")
        all_int8 = effect((), "everything in INT8")
    rows = []
    for number in chosen:
        unit = units[number]
        tell.update(f"{unit.name}, {number + 1} of {len(units)}")
        rows.append(
            UnitSensitivity(
                unit=unit.name,
                pattern=unit.pattern,
                layers=len(unit.layers),
                macs=unit.macs,
                mac_share=unit.macs / total,
                parameters=unit.parameters,
                only_on=effect(all_but(model, unit), f"only {unit.name} in INT8"),
                # Without its only unit nothing is INT8, and ``quantize`` makes no such graph.
                only_off=effect((unit.pattern,), f"all but {unit.name} in INT8") if len(units) > 1 else fp32,
            )
        )
    return MeasuredUnits(images=len(crops), fp32=fp32, all_int8=all_int8, rows=tuple(rows))


def sensitivity_report(
    model: ir.Model, spec: ModelSpec, found: Sequence[MeasuredUnits], truth: Truth | None, dataset: str
) -> SensitivityReport:
    """The report of all units, from parts in the network's order, one of which has all in INT8."""
    paired = truth is not None and truth.figure != TOP1
    (all_int8,) = (part.all_int8 for part in found if part.all_int8 is not None)
    return SensitivityReport(
        model=spec.name,
        dataset=dataset,
        images=found[0].images,
        sample=spec.sample_word,
        macs=sum(macs_of(model, spec.one_size).values()),
        figure=truth.figure if truth is not None and paired else "",
        unit=truth.unit if truth is not None and paired else "",
        fp32=found[0].fp32,
        all_int8=all_int8,
        units=tuple(sorted((row for part in found for row in part.rows), key=lambda row: row.only_on.sqnr_db)),
    )

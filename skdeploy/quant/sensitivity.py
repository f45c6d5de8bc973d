"""The cost of INT8 for each unit: alone in INT8, and alone not in INT8."""

from __future__ import annotations

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
    units = units_of(model, spec, keep, keep_grouped=keep_grouped)
    tell.update("FP32")
    samples = Samples.of(model, spec, crops, truth)

    def effect(patterns: tuple[str, ...], shown: str) -> Effect:
        done = quantize(model, spec, ranges, (*keep, *patterns), keep_grouped=keep_grouped, half=False)
        return samples.effect(samples.run(done.model, shown))

    fp32 = samples.effect(samples.exact)
    total = sum(macs_of(model, spec.one_size).values())
    tell.update("all in INT8")
    all_int8 = effect((), "everything in INT8")
    rows = []
    for number, unit in enumerate(units, 1):
        tell.update(f"{unit.name}, {number} of {len(units)}")
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
    paired = truth is not None and truth.figure != TOP1
    return SensitivityReport(
        model=spec.name,
        dataset=dataset,
        images=len(crops),
        sample=spec.sample_word,
        macs=total,
        figure=truth.figure if truth is not None and paired else "",
        unit=truth.unit if truth is not None and paired else "",
        fp32=fp32,
        all_int8=all_int8,
        units=tuple(sorted(rows, key=lambda row: row.only_on.sqnr_db)),
    )

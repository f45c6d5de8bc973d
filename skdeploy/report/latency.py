"""Latency as devices have recorded it: whether INT8 pays, a table by artifact and batch, and throughput as a drawing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from skdeploy.bench.report import Comparison, LatencyReceipt, Measured
from skdeploy.bundle.receipts import Receipt
from skdeploy.core.significant import significant
from skdeploy.report.blocks import Block, Cell, Figure, Fold, Section, Table, Text, columns, count, name
from skdeploy.report.plot_throughput import Line, throughput_figure
from skdeploy.report.plots import Axis, Reference, Row, rows_figure

DIGITS: Final = 4  # of a latency: the fourth is below what a bench repeats within
LEAD: Final = (
    "latency of a batch as its caller waits for it, copies included; throughput is the batch divided by its p50"
)


@dataclass(frozen=True)
class Benched:
    """A receipt of kind latency that `skdeploy bench` wrote."""

    receipt: Receipt
    latency: LatencyReceipt

    @property
    def measured(self) -> Measured:
        about, device = self.receipt, self.receipt.device.name
        return Measured(bundle="", artifact=about.artifact, backend=about.backend, device=device, latency=self.latency)

    @property
    def place(self) -> str:
        return f"{self.receipt.artifact}, {self.receipt.backend} on {self.receipt.device.name}"


def benched(receipts: Sequence[Receipt]) -> tuple[Benched, ...]:
    """Receipts of latency that `skdeploy bench` wrote; others are shown as they are."""
    return tuple(
        Benched(receipt, latency)
        for receipt in receipts
        if receipt.kind == "latency" and (latency := _read(receipt)) is not None
    )


def _read(receipt: Receipt) -> LatencyReceipt | None:
    try:
        return LatencyReceipt.model_validate_json(json.dumps(receipt.content))
    except ValidationError:
        return None


def bench_findings(measured: Sequence[Measured], comparisons: Sequence[Comparison]) -> Section:
    """Whether INT8 pays and what else was compared, reasons to doubt the figures, the figures, and how each was measured."""
    compared = [Text(comparison_text(one)) for one in comparisons]
    doubted: dict[str, list[str]] = {}
    for found in measured:
        for doubt in found.latency.doubts:
            doubted.setdefault(doubt, []).append(f"{found.artifact} on {found.backend}")
    doubts = [
        doubt if len(places) == len(measured) else f"{', '.join(places)}: {doubt}" for doubt, places in doubted.items()
    ]
    care = "measured on a machine that was not at rest; take these figures with care"
    cautious = (Text(f"{care}: {'; '.join(doubts)}", "warn"),) if doubts else ()
    how = [
        Text(
            f"{found.artifact} on {found.backend}: {found.device}{_threads(found)}; {found.latency.session}{_sizes(found)}"
        )
        for found in measured
    ]
    return Section("latency", "Latency", LEAD, (*compared, *cautious, _table(measured), *how))


def comparison_text(comparison: Comparison) -> str:
    """Whether INT8 pays if that is what was compared, else which artifact is faster."""
    return comparison.int8 or comparison.sentence


def _threads(found: Measured) -> str:
    return f", {found.latency.threads} threads" if found.latency.threads is not None else ""


def _sizes(found: Measured) -> str:
    return "".join(f", {name} {size}" for name, size in found.latency.sizes.items())


def latency_blocks(found: Sequence[Benched]) -> tuple[Block, ...]:
    """The findings, and every ratio and throughput as a drawing."""
    measured = [one.measured for one in found]
    compared = [comparison for one in found for comparison in one.latency.comparisons]
    section = bench_findings(measured, compared)
    lines = [
        Line(one.place, tuple(sorted((row.batch, row.images_per_second) for row in one.latency.batches)))
        for one in found
    ]
    table = next(block for block in section.blocks if isinstance(block, Table))
    doubts = [block for block in section.blocks if isinstance(block, Text) and block.tone]
    first, *others = [block for block in section.blocks if block is not table and block not in doubts]
    figure = (_comparisons_figure(compared),) if compared else ()
    fold = Fold("Every comparison in words, and how each was run", (Text(section.lead), *others))
    return (*doubts, first, *figure, table, *throughput_figure(lines), fold)


def _comparisons_figure(compared: Sequence[Comparison]) -> Figure:
    rows = [
        Row(
            f"{comparison.artifact} to {comparison.against}, batch {comparison.batch}",
            f"{comparison.ratio.ratio:.2f}x",
            interval=(comparison.ratio.low, comparison.ratio.high),
            marks=((0, comparison.ratio.ratio),),
        )
        for comparison in compared
    ]
    ends = [end for row in rows if row.interval for end in row.interval]
    axis = Axis.logarithmic([1.0, *ends], "latency (times that of the other, log scale), less is better")
    caption = "Both were timed in turn on one machine. The bar is the 95 % interval of the ratio."
    reference = [Reference(1.0, "as fast")]
    return rows_figure("Latency against another artifact", caption, rows, axis, references=reference)


def _table(measured: Sequence[Measured]) -> Table:
    """A row for each artifact, backend and batch. The device's own time is there where a backend tells it."""
    on_device = any(row.device_ms for found in measured for row in found.latency.batches)
    heads = columns(
        "artifact",
        ">batch",
        (">p50 ms", "half of the runs took no longer, copies and waiting included"),
        (">p99 ms", "99 % of the runs took no longer"),
        f">{measured[0].latency.sample if measured else 'image'}s/s",
        *([(">device p50 ms", "of the device alone, without copies; not every backend tells it")] if on_device else []),
        ">min ms",
        ">p90 ms",
        ">runs",
        "backend",
    )
    rows = []
    for found in measured:
        for row in found.latency.batches:
            device = [_time(row.device_ms.p50) if row.device_ms else Cell("", math.nan)] if on_device else []
            host = row.host_ms
            figures = (
                _time(host.p50),
                _time(host.p99),
                _time(row.images_per_second),
                *device,
                _time(host.min),
                _time(host.p90),
            )
            rows.append((name(found.artifact), count(row.batch), *figures, count(row.runs), Cell(found.backend)))
    return Table("latency and throughput by artifact and batch", heads, tuple(rows), "receipts", least=5)


def _time(value: float) -> Cell:
    return Cell(significant(value, DIGITS), value)

"""Latency as devices have recorded it: whether INT8 pays, a table by artifact and batch, and throughput as a drawing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from skdeploy.bench.report import BatchLatency, LatencyReceipt
from skdeploy.bundle.receipts import Receipt
from skdeploy.report.blocks import Block, Bullets, Cell, Fold, Table, Text, columns, count, counted, number, sentence
from skdeploy.report.plot_throughput import Line, throughput_figure
from skdeploy.report.plots import Axis, Reference, Row, rows_figure

COLUMNS: Final = columns(
    ("artifact", "and how it was run"),
    ">batch",
    (">p50 ms", "half of the runs took no longer, copies and waiting included"),
    (">p99 ms", "99 % of the runs took no longer"),
    (">device p50 ms", "of the device alone, without copies; not every backend tells it"),
    (">images/s", "the batch divided by its p50"),
    ">runs",
)


@dataclass(frozen=True)
class Benched:
    """A receipt of kind latency that `skdeploy bench` wrote."""

    receipt: Receipt
    latency: LatencyReceipt

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


def latency_blocks(found: Sequence[Benched]) -> tuple[Block, ...]:
    """What makes the figures doubtful, whether INT8 pays, and the figures."""
    blocks: list[Block] = []
    doubts = tuple(f"{one.place}: {doubt}" for one in found for doubt in one.latency.doubts)
    if doubts:
        blocks += [Text("measured on a machine that was not at rest; take these figures with care:", "warn")]
        blocks.append(Bullets(doubts))
    blocks += _comparisons(found)
    rows = tuple(_row(one, batch) for one in found for batch in one.latency.batches)
    blocks.append(Table("latency and throughput by artifact and batch", COLUMNS, rows, "receipts"))
    lines = [
        Line(one.place, tuple(sorted((row.batch, row.images_per_second) for row in one.latency.batches)))
        for one in found
    ]
    return (*blocks, *throughput_figure(lines))


def _comparisons(found: Sequence[Benched]) -> list[Block]:
    """Sentences and a drawing of every ratio; the first sentence says whether INT8 pays, if that was compared."""
    compared = [comparison for one in found for comparison in one.latency.comparisons]
    if not compared:
        return []
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
    sentences = tuple(sentence(comparison.int8 or comparison.sentence) for comparison in compared)
    others = (Fold(counted(len(sentences) - 1, "more comparison"), (Bullets(sentences[1:]),)),) if sentences[1:] else ()
    figure = rows_figure("Latency against another artifact", caption, rows, axis, references=reference)
    return [Text(sentences[0]), *others, figure]


def _row(one: Benched, row: BatchLatency) -> tuple[Cell, ...]:
    threads = f"{one.latency.threads} threads; " if one.latency.threads is not None else ""
    how = f"{one.receipt.backend} on {one.receipt.device.name}; {threads}{one.latency.session}"
    return (
        Cell(one.receipt.artifact, code=True, note=how),
        count(row.batch),
        number(row.host_ms.p50, ",.3f"),
        number(row.host_ms.p99, ",.3f"),
        number(row.device_ms.p50, ",.3f") if row.device_ms is not None else Cell("", float("nan")),
        number(row.images_per_second, ",.1f"),
        count(row.runs),
    )

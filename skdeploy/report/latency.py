"""The report's figures of latency: a table by device, backend and batch, and throughput by batch as a drawing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from pydantic import ValidationError

from skdeploy.bench.report import LatencyReport
from skdeploy.bundle.receipts import Receipt
from skdeploy.report.blocks import Block, Bullets, Cell, Table, Text, columns, count, name, number
from skdeploy.report.plot_throughput import Line, throughput_figure

COLUMNS: Final = columns(
    "Artifact",
    "Device",
    ("Backend", "and how it was run"),
    ">Batch",
    (">p50 ms", "half of the runs took no longer, copies and waiting included"),
    ">p99 ms",
    (">Device p50 ms", "of the device alone, without copies; not known of every backend"),
    (">Images/s", "the batch divided by its p50"),
    ">Runs",
)


def latency_of(receipt: Receipt) -> LatencyReport | None:
    """The receipt's content, if `skdeploy bench` wrote it; others are shown as they are."""
    try:
        return LatencyReport.model_validate_json(json.dumps(receipt.content))
    except ValidationError:
        return None


def latency_blocks(found: Sequence[tuple[Receipt, LatencyReport]]) -> tuple[Block, ...]:
    """The table, the drawing where a backend was given several batches, and what was wrong with the machine meanwhile."""
    rows = tuple(_row(receipt, latency, index) for receipt, latency in found for index in range(len(latency.batches)))
    blocks: list[Block] = [Table("Latency and throughput by device, backend and batch", COLUMNS, rows, "receipts")]
    lines = [
        Line(
            f"{receipt.artifact}, {receipt.backend} on {receipt.device.name}",
            tuple(sorted((row.batch, row.images_per_second) for row in latency.batches)),
        )
        for receipt, latency in found
    ]
    blocks += throughput_figure(lines)
    warned = tuple(
        f"{receipt.artifact}, {receipt.backend} on {receipt.device.name}: {warning}"
        for receipt, latency in found
        for warning in _warnings(latency)
    )
    if warned:
        blocks += [
            Text("Measured on a machine that was not at rest; take these figures with care:", "warn"),
            Bullets(warned),
        ]
    return tuple(blocks)


def _warnings(latency: LatencyReport) -> list[str]:
    unstable = [
        f"batch {row.batch} was not stable after the warm-up" for row in latency.batches if not row.warm_up_stable
    ]
    return [*unstable, *latency.machine.warnings]


def _row(receipt: Receipt, latency: LatencyReport, index: int) -> tuple[Cell, ...]:
    row = latency.batches[index]
    threads = f"{latency.threads} threads; " if latency.threads is not None else ""
    return (
        name(receipt.artifact),
        Cell(receipt.device.name),
        Cell(receipt.backend, note=threads + latency.session),
        count(row.batch),
        number(row.host_ms.p50, ",.3f"),
        number(row.host_ms.p99, ",.3f"),
        number(row.device_ms.p50, ",.3f") if row.device_ms is not None else Cell("", float("nan")),
        number(row.images_per_second, ",.1f"),
        count(row.runs),
    )

"""``skdeploy plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

BUSY = 1.15  # median to fastest run: an idle machine stays within a few percent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from skdeploy.planning.recommend import Recommendation
    from skdeploy.planning.report import CpuPlan, DevicePlan, LayerPlan, PlanReport


def plan(
    path: Annotated[Path, typer.Argument(help="A bundle, of which the last graph is planned, or an .onnx file.")],
    device: Annotated[
        list[str],
        typer.Option(help="Of the table of devices, or this-cpu; may be given again. all: every one of the table."),
    ],
    batch: Annotated[
        int | None, typer.Option(help="Images at a time.  [default: 1, or the batch that the graph is fixed to]")
    ] = None,
    imgsz: Annotated[
        int | None, typer.Option(min=1, help="Height and width in pixels, if the graph leaves them open.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many of the slowest layers are shown.")] = 5,
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="With this-cpu: also measure the FP32 graph, and compare.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")] = False,
) -> None:
    """Before building: what a graph costs on a device at the least, what limits it, and how to export it for that.

    A floor, an estimate from peak figures. `skdeploy bench` on the device measures.
    """
    from skdeploy.cli.console import ConsoleProgress, output_console
    from skdeploy.planning.report import plan as run

    size = (imgsz, imgsz) if imgsz is not None else None
    with ConsoleProgress() as progress:
        report = run(path, device, batch=batch, size=size, top=top, check=check, say=progress.note)
    if json:
        print(report.model_dump_json(indent=2))
        return
    console = output_console()
    _print_head(console, report)
    if len(report.devices) > 1:
        _print_rows(console, report)
    else:
        for each in report.devices:
            _print_device(console, report, each)
    if layers:
        for each in report.devices:
            _print_layers(console, f"every layer on {each.name}", each.layers)
    if report.cpu is not None:
        _print_cpu(console, report.cpu)
    console.print(report.note, style="italic", soft_wrap=True)


def _print_head(console: Console, report: PlanReport) -> None:
    from rich.markup import escape

    console.print(escape(f"{report.graph}: {report.precision}, batch {report.batch}"), style="italic", soft_wrap=True)
    console.print(f"{report.macs / 1e9:.2f} G multiply-accumulates an image")
    if not report.grouped:
        return
    from skdeploy.planning.report import INT8_GROUPED

    widths = sorted({conv.into_group for conv in report.grouped})
    refused = [conv for conv in report.grouped if conv.int8_reason]
    console.print(
        f"{len(report.grouped)} grouped convolutions, {', '.join(map(str, widths))} channels a group; "
        f"{len(report.grouped) - len(refused)} take INT8: {INT8_GROUPED}",
        soft_wrap=True,
    )
    for reason in dict.fromkeys(conv.int8_reason for conv in refused):
        names = [conv.name for conv in refused if conv.int8_reason == reason]
        console.print(escape(f"  no INT8: {names[0]} and {len(names) - 1} more: {reason}"), soft_wrap=True)


def _print_rows(console: Console, report: PlanReport) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("device")
    for floor in report.devices[0].floors:
        table.add_column(f"{floor.precision} ms", justify="right")
    table.add_column("images/s", justify="right")
    table.add_column("DLA", justify="right")
    table.add_column("estimate: export with")
    for each in report.devices:
        own = next(floor for floor in each.floors if floor.precision == report.precision)
        table.add_row(
            each.name,
            *(f"{floor.latency_ms:.3f}" for floor in each.floors),
            f"{own.images_a_second:,.0f}",
            f"{each.dla.eligible_share_of_macs:.0%}" if each.dla else "",
            _advice(each.recommendation),
        )
    console.print(table)


def _advice(choice: Recommendation) -> str:
    return f"{choice.options}, or {choice.undecided}: measure" if choice.undecided else choice.options


def _print_device(console: Console, report: PlanReport, each: DevicePlan) -> None:
    from rich.markup import escape
    from rich.table import Table

    figures = each.figures
    console.print(
        f"[bold]{each.name}[/bold]: {escape(figures.title)}, {figures.fp32_tflops:g} FP32 and {figures.fp16_tflops:g} FP16 "
        f"TFLOPS, {figures.int8_tops:g} INT8 TOPS, dense; {figures.bandwidth_gb_s:g} GB/s",
        soft_wrap=True,
    )
    console.print(escape(f"source: {each.source.title}; {figures.note}"), style="dim", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column in ("floor as", "ms", "images/s"):
        table.add_column(column, justify="left" if column == "floor as" else "right")
    for floor in each.floors:
        own = " (the graph)" if floor.precision == report.precision else ""
        table.add_row(f"{floor.precision}{own}", f"{floor.latency_ms:.3f}", f"{floor.images_a_second:,.0f}")
    console.print(table)
    _print_layers(console, f"the {len(each.dominating)} slowest of {len(each.layers)} layers", each.dominating)
    choice = each.recommendation
    console.print(f"estimate: export with [bold]{choice.options}[/bold]: {choice.reason}", soft_wrap=True)
    for other in choice.choices:
        console.print(f"  {other.floor_ms:8.3f} ms  {other.options}")
    if each.dla is None:
        console.print("no DLA on this device")
        return
    dla = each.dla
    static = "" if dla.static else "; it needs a fixed batch: export --batch N"
    console.print(
        f"DLA, {figures.dla_cores} cores: {dla.eligible_share_of_macs:.0%} of the multiply-accumulates, "
        f"{dla.eligible_nodes} of {dla.nodes} nodes, in {dla.segments} pieces of which a core loads 16 at most{static}",
        soft_wrap=True,
    )
    for refusal in dla.refusals:
        console.print(escape(f"  {len(refusal.nodes):>4} x {refusal.rule}, such as {refusal.nodes[0]}"), soft_wrap=True)
    console.print(dla.releases, style="dim", soft_wrap=True)


def _print_layers(console: Console, title: str, rows: Iterable[LayerPlan]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False)
    for column in ("layer", "what", "nodes", "type", "MMACs", "padded", "MB", "MACs/B", "bound", "ms"):
        words = column in ("layer", "what", "type", "bound")
        table.add_column(column, justify="left" if words else "right", overflow="fold")
    for row in rows:
        table.add_row(
            escape(row.name),
            row.kind,
            str(len(row.nodes)),
            row.precision,
            f"{row.macs / 1e6:.1f}",
            f"x{row.padded_macs / row.macs:.1f}" if row.macs else "",
            f"{row.bytes_moved / 1e6:.2f}",
            f"{row.intensity:.0f}",
            row.bound,
            f"{row.floor_ms:.4f}",
        )
    console.print(table)


def _print_cpu(console: Console, cpu: CpuPlan) -> None:
    rates = cpu.rates
    console.print(
        f"[bold]this-cpu[/bold]: {rates.threads} threads, {2 * rates.peak_macs_a_second / 1e9:.0f} GFLOP/s in a matrix "
        f"product, {rates.memory_bytes_a_second / 1e9:.1f} GB/s from memory, measured now in ONNX Runtime",
        soft_wrap=True,
    )
    console.print(f"predicted {cpu.predicted_ms:.2f} ms in FP32")
    if cpu.measured_ms is not None and cpu.fastest_ms is not None:
        console.print(f"measured  {cpu.measured_ms:.2f} ms: predicted / measured = {cpu.ratio:.2f}")
        if cpu.measured_ms > BUSY * cpu.fastest_ms:
            console.print(
                f"[yellow]![/yellow] the fastest run took {cpu.fastest_ms:.2f} ms: this machine has other work, and the "
                "comparison means little",
                soft_wrap=True,
            )
    _print_layers(console, f"the {len(cpu.dominating)} slowest layers", cpu.dominating)

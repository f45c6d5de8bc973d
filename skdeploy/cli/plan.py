"""``skdeploy plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skdeploy.core.significant import significant

WIDE = 120  # columns of a terminal that all of a layer's figures fit in

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from skdeploy.planning.recommend import Recommendation
    from skdeploy.planning.report import DevicePlan, LayerPlan, PlanReport


def plan(
    path: Annotated[Path, typer.Argument(help="A bundle, of which the last graph is planned, or an .onnx file.")],
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,...",
            help="Of the table of devices; all: every one of them. Needed; without a name, they are listed.",
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Images at a time.  [default: 1, or the batch that the graph is fixed to]")
    ] = None,
    imgsz: Annotated[
        int | None, typer.Option(min=1, help="Height and width in pixels, if the graph leaves them open.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many of the slowest layers are shown.")] = 5,
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")] = False,
) -> None:
    """Before building: what a graph costs on a device at the least, what limits it, and how to export it for that.

    All of it is an estimate, from peak figures: a floor. `skdeploy bench` on the device measures.
    """
    from skdeploy.cli.console import output_console
    from skdeploy.planning.report import plan as run

    size = (imgsz, imgsz) if imgsz is not None else None
    report = run(path, device or (), batch=batch, size=size, top=top)
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
            _print_layers(console, f"every layer on {each.name}, floors", each.layers)
    console.print(report.note, style="italic", soft_wrap=True)


def _print_head(console: Console, report: PlanReport) -> None:
    from rich.markup import escape

    console.print(escape(f"{report.graph}: {report.precision}, batch {report.batch}"), style="italic", soft_wrap=True)
    macs = (
        f"{significant(report.macs / 1e9)} billion"
        if report.macs >= 1e9
        else f"{significant(report.macs / 1e6)} million"
    )
    console.print(f"{macs} multiply-accumulates an image")
    if not report.grouped:
        return
    from skdeploy.planning.report import INT8_GROUPED

    widths = ", ".join(str(width) for width in sorted({conv.into_group for conv in report.grouped}))
    refused = [conv for conv in report.grouped if conv.int8_reason]
    console.print(
        f"{len(report.grouped)} grouped convolutions, of {widths} channels a group; INT8 takes "
        f"{len(report.grouped) - len(refused)} of them: {INT8_GROUPED}",
        soft_wrap=True,
    )
    for reason in dict.fromkeys(conv.int8_reason for conv in refused):
        names = [conv.name for conv in refused if conv.int8_reason == reason]
        more = f" and {len(names) - 1} more" if names[1:] else ""
        console.print(escape(f"  no INT8: {names[0]}{more}: {reason}"), soft_wrap=True)


def _print_rows(console: Console, report: PlanReport) -> None:
    from rich.table import Table

    title = (
        f"floors, estimates: ms a batch of {report.batch}; images/s in {report.precision}; the share that a DLA takes"
    )
    console.print(title, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("device", no_wrap=True)
    for floor in report.devices[0].floors:
        table.add_column(f"{floor.precision} ms", justify="right", no_wrap=True)
    for column in ("images/s", "DLA"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in report.devices:
        own = next(floor for floor in each.floors if floor.precision == report.precision)
        table.add_row(
            each.name,
            *(significant(floor.latency_ms) for floor in each.floors),
            significant(own.images_a_second),
            _share(each.dla.eligible_share_of_macs) if each.dla else "",
        )
    console.print(table)
    advised: dict[str, list[str]] = {}
    for each in report.devices:
        advised.setdefault(_advice(each.recommendation), []).append(each.name)
    for advice, names in advised.items():
        console.print(f"estimate: export with {advice}: {', '.join(names)}", soft_wrap=True)
    for each in report.devices:
        _print_fit(console, report, each)


def _advice(choice: Recommendation) -> str:
    if choice.undecided:
        return f"{choice.options} or {choice.undecided}, undecided, measure both"
    return choice.options


def _share(share: float) -> str:
    """In percent; what is not all is not called so."""
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def _print_fit(console: Console, report: PlanReport, each: DevicePlan) -> None:
    if not each.fits:
        console.print(
            f"[yellow]![/yellow] {each.name} has {each.figures.memory_gb:g} GB, and a batch of {report.batch} needs about "
            f"{significant(each.least_memory_bytes / 1e9)} GB at the least: it does not fit",
            soft_wrap=True,
        )


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
    table.add_column("estimate")
    for column in ("floor ms", "images/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for floor in each.floors:
        own = " (the graph)" if floor.precision == report.precision else ""
        table.add_row(
            f"all in {floor.precision}{own}" if floor.precision != "int8" else f"{floor.precision}, else fp16{own}",
            significant(floor.latency_ms),
            significant(floor.images_a_second),
        )
    console.print(table)
    _print_fit(console, report, each)
    _print_layers(console, _slowest(len(each.dominating), len(each.layers)), each.dominating)
    _print_choices(console, each.recommendation)
    if each.dla is None:
        console.print("no DLA on this device")
        return
    dla = each.dla
    static = "" if dla.static else "; it needs a fixed batch: export --batch N"
    console.print(
        f"DLA, {figures.dla_cores} cores: {_share(dla.eligible_share_of_macs)} of the multiply-accumulates, "
        f"{dla.eligible_nodes} of {dla.nodes} nodes, in {dla.segments} pieces of which a core loads 16 at most{static}",
        soft_wrap=True,
    )
    for refusal in dla.refusals:
        console.print(escape(f"  {len(refusal.nodes):>4} x {refusal.rule}, such as {refusal.nodes[0]}"), soft_wrap=True)
    console.print(dla.releases, style="dim", soft_wrap=True)


def _print_choices(console: Console, choice: Recommendation) -> None:
    """The advice, and the floors that it was chosen by: of each way to merge groups the best alone."""
    from rich.table import Table

    rival = f" or [bold]{choice.undecided}[/bold]" if choice.undecided else ""
    console.print(f"estimate: export with [bold]{choice.options}[/bold]{rival}: {choice.reason}", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("floor ms", justify="right", no_wrap=True)
    table.add_column("export with")
    shown = dict[tuple[str, bool], None]()
    for other in choice.choices:  # fastest first
        base, _, regroup = other.options.partition(" --regroup ")
        if (base, bool(regroup)) not in shown or other.options in (choice.options, choice.undecided):
            table.add_row(significant(other.floor_ms), other.options)
        shown[base, bool(regroup)] = None
    console.print(table)


def _slowest(shown: int, layers: int) -> str:
    return (
        f"the slowest {shown} of {layers} layers, by their floors" if shown > 1 else f"the slowest of {layers} layers"
    )


def _print_layers(console: Console, title: str, rows: Iterable[LayerPlan]) -> None:
    """A narrow terminal gets fewer columns, and --json has them all."""
    from rich.markup import escape
    from rich.table import Table

    columns = ("layer", "what", "nodes", "type", "M MACs", "padded", "MB moved", "MACs/B", "limit", "floor ms")
    narrow = ("layer", "what", "type", "limit", "floor ms")
    shown = columns if console.width >= WIDE else narrow
    console.print(escape(title), style="italic", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column in shown:
        words = column in ("layer", "what", "type", "limit")
        table.add_column(column, justify="left" if words else "right", overflow="fold", no_wrap=not words)
    for row in rows:
        cells = {
            "layer": escape(row.name),
            "what": row.kind,
            "nodes": str(len(row.nodes)),
            "type": row.precision.value,
            "M MACs": significant(row.macs / 1e6),
            "padded": f"x{row.padded_macs / row.macs:.1f}" if row.macs else "",
            "MB moved": significant(row.bytes_moved / 1e6),
            "MACs/B": significant(row.intensity, 2),
            "limit": row.bound,
            "floor ms": significant(row.floor_ms),
        }
        table.add_row(*(cells[column] for column in shown))
    console.print(table)

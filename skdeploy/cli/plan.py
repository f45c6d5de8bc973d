"""``skdeploy plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skdeploy.cli.arguments import IMAGE_SIZE, Json, Sizes, free_sizes, image_size
from skdeploy.core.precision import PRECISIONS
from skdeploy.core.significant import significant

LAYERS = ("layer", "what", "type", "limit", ">floor ms", ">M MACs", ">padded", ">MB moved", ">MACs/B", ">nodes")

if TYPE_CHECKING:
    from collections.abc import Iterable

    from skdeploy.planning.recommend import Recommendation
    from skdeploy.planning.report import DevicePlan, LayerPlan, PlanReport
    from skdeploy.report.terminal import Terminal


def plan(
    path: Annotated[Path, typer.Argument(help="A bundle (its last graph is used) or an .onnx file.")],
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,...",
            help="Device names, or all. Required; without it, the error lists the names.",
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Batch size.  [default: the graph's fixed batch, else 1]")] = None,
    imgsz: Annotated[
        str | None,
        typer.Option(metavar=IMAGE_SIZE, help="Both sides in pixels, or height x width, for a graph of dynamic size."),
    ] = None,
    size: Sizes = None,
    top: Annotated[int, typer.Option(help="Show this many of the slowest layers.")] = 5,
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer.")] = False,
    json: Json = False,
) -> None:
    """Estimate the best possible latency of a graph on a device, what limits it, and which export options fit.

    The estimate comes from the device's peak figures: no run can be faster. Use `skdeploy bench` on the device to measure.

    Examples:
        skdeploy plan build/mynet-int8 --device orin-nano
        skdeploy plan mynet.onnx --device t4,orin-nx
    """
    from skdeploy.cli.console import write_json
    from skdeploy.planning.report import plan as run
    from skdeploy.report.terminal import Terminal

    report = run(path, device or (), batch=batch, size=image_size(imgsz), sizes=free_sizes(size), top=top)
    if json:
        write_json(report)
        return
    terminal = Terminal()
    _print_head(terminal, report)
    if len(report.devices) > 1:
        _print_rows(terminal, report)
    else:
        for each in report.devices:
            _print_device(terminal, report, each)
    if layers:
        for each in report.devices:
            _print_layers(terminal, f"every layer on {each.name}, floors", each.layers)
    for note in report.weight_only:
        terminal.say(f"--weight-only int8: {note}")
    terminal.title(report.note)


def _print_head(terminal: Terminal, report: PlanReport) -> None:
    from skdeploy.planning.report import INT8_GROUPED

    sizes = "".join(f", {name} {size}" for name, size in report.sizes.items())
    terminal.title(f"{report.graph}: {report.precision}, batch {report.batch}{sizes}")
    scale, unit = (1e9, "billion") if report.macs >= 1e9 else (1e6, "million")
    terminal.say(f"{significant(report.macs / scale)} {unit} multiply-accumulates per {report.sample}")
    if not report.grouped:
        return
    widths = ", ".join(map(str, sorted({conv.into_group for conv in report.grouped})))
    refused = [conv for conv in report.grouped if conv.int8_reason]
    terminal.say(
        f"{len(report.grouped)} grouped convolutions, with {widths} channels per group; INT8 can run "
        f"{len(report.grouped) - len(refused)} of them: {INT8_GROUPED}"
    )
    for reason in dict.fromkeys(conv.int8_reason for conv in refused):
        names = [conv.name for conv in refused if conv.int8_reason == reason]
        more = f" and {len(names) - 1} more" if names[1:] else ""
        terminal.say(f"  no INT8: {names[0]}{more}: {reason}")


def _print_rows(terminal: Terminal, report: PlanReport) -> None:
    terminal.say(
        f"estimates, the best possible: ms per batch of {report.batch}; {report.sample}s/s in {report.precision}; share "
        "that a DLA can run"
    )
    rows = []
    found = {floor.precision for each in report.devices for floor in each.floors}
    shown = [precision for precision in PRECISIONS.values() if precision in found]
    for each in report.devices:
        of = {floor.precision: floor for floor in each.floors}
        floors = [significant(of[precision].latency_ms) if precision in of else "none" for precision in shown]
        images = significant(of[report.precision].images_a_second) if report.precision in of else ""
        share = _share(each.dla.eligible_share_of_macs) if each.dla else ""
        rows.append([each.name, *floors, images, share])
    columns = ["device", *(f">{precision}" for precision in shown), f">{report.sample}s/s", ">DLA"]
    terminal.table(columns, rows, whole=("device",))
    advised: dict[str, list[str]] = {}
    for each in report.devices:
        advised.setdefault(_advice(each.recommendation), []).append(each.name)
    for advice, names in advised.items():
        terminal.headline(f"estimate: export with {advice}: {', '.join(names)}")
    for each in report.devices:
        _print_fit(terminal, report, each)


def _advice(choice: Recommendation) -> str:
    if choice.undecided:
        return f"{choice.options} or {choice.undecided} (too close to call: measure both)"
    return choice.options


def _share(share: float) -> str:
    """In percent; what is not all is not called so."""
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def _print_fit(terminal: Terminal, report: PlanReport, each: DevicePlan) -> None:
    if not each.fits:
        terminal.warn(
            f"{each.name} has {each.figures.memory_gb:g} GB, but a batch of {report.batch} needs at least "
            f"{significant(each.least_memory_bytes / 1000000000.0)} GB: it does not fit"
        )


def _print_device(terminal: Terminal, report: PlanReport, each: DevicePlan) -> None:
    figures = each.figures
    terminal.say(
        (each.name, "bold"),
        f": {figures.title}, {figures.fp32_tflops:g} FP32 and {figures.fp16_tflops:g} FP16 TFLOPS, {figures.int8_tops:g} INT8 "
        f"TOPS, dense; {figures.bandwidth_gb_s:g} GB/s",
    )
    terminal.say(f"source: {each.source.title}; {figures.note}", style="dim")
    rows = []
    for floor in each.floors:
        own = " (the graph)" if floor.precision == report.precision else ""
        beside = "arithmetic in" if floor.precision.weights_only else "else"
        of = floor.precision.beside
        estimate = f"{floor.precision}, {beside} {of}" if of else f"all in {floor.precision}"
        rows.append((estimate + own, significant(floor.latency_ms), significant(floor.images_a_second)))
    terminal.table(("estimate", ">floor ms", f">{report.sample}s/s"), rows)
    for lack in each.lacks:
        terminal.say(lack)
    _print_fit(terminal, report, each)
    shown, count = len(each.dominating), len(each.layers)
    slowest = f"slowest {shown} of {count} layers, by their floors" if shown > 1 else f"slowest of {count} layers"
    _print_layers(terminal, f"the {slowest}", each.dominating)
    _print_choices(terminal, each.recommendation)
    if each.dla is None:
        terminal.say("no DLA on this device")
        return
    dla = each.dla
    static = "" if dla.static else "; it needs a fixed batch: export --batch N"
    terminal.say(
        f"DLA, {figures.dla_cores} cores: can run {_share(dla.eligible_share_of_macs)} of the "
        f"multiply-accumulates, {dla.eligible_nodes} of {dla.nodes} nodes, in {dla.segments} pieces; a core "
        f"loads at most 16{static}"
    )
    for refusal in dla.refusals:
        terminal.say(f"  {len(refusal.nodes):>4} x {refusal.rule}, such as {refusal.nodes[0]}")
    terminal.say(dla.releases, style="dim")


def _print_choices(terminal: Terminal, choice: Recommendation) -> None:
    """The advice, and the floors that it was chosen by: of each way to merge groups the best alone."""
    rival = (" or ", (choice.undecided, "bold")) if choice.undecided else ()
    terminal.headline("estimate: export with ", (choice.options, "bold"), *rival, f": {choice.reason}")
    rows, shown = [], set[tuple[str, bool]]()
    for other in choice.choices:  # fastest first
        base, _, regroup = other.options.partition(" --regroup ")
        if (base, bool(regroup)) not in shown or other.options in (choice.options, choice.undecided):
            rows.append((significant(other.floor_ms), other.options))
        shown.add((base, bool(regroup)))
    terminal.table((">floor ms", "export with"), rows)


def _print_layers(terminal: Terminal, title: str, layers: Iterable[LayerPlan]) -> None:
    """A narrow terminal gets fewer columns, and --json has them all."""
    terminal.title(title)
    rows = [
        (
            row.name,
            row.kind,
            row.precision,
            row.bound,
            significant(row.floor_ms),
            significant(row.macs / 1e6),
            f"x{row.padded_macs / row.macs:.1f}" if row.macs else "",
            significant(row.bytes_moved / 1e6),
            significant(row.intensity, 2),
            str(len(row.nodes)),
        )
        for row in layers
    ]
    terminal.table(LAYERS, rows, least=5)

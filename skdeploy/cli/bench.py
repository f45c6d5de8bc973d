"""``skdeploy bench``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skdeploy.backends import BACKENDS
from skdeploy.cli.arguments import BundleFolder, Json, Receipt, Sizes, free_sizes
from skdeploy.core.panel import Panel
from skdeploy.core.significant import significant

if TYPE_CHECKING:
    from skdeploy.bench.report import BenchReport


def bench(
    bundle: BundleFolder,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help=f"Backends to time: {', '.join(BACKENDS)}.  [default: all that work here, except torch]",
            rich_help_panel=Panel.ENGINE,
        ),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,...", help="Batch sizes to time.")] = "1",
    size: Sizes = None,
    seconds: Annotated[float, typer.Option(help="Seconds of timing for each artifact and batch size.")] = 3.0,
    artifact: Annotated[
        str | None,
        typer.Option(
            help="File of the bundle to time, or torch.  [default: the last graph, and engines that run here]"
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Another bundle to time in turn with this one and to compare with."),
    ] = None,
    against_artifact: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="File to compare with, in --against or in this bundle."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            help="CPU threads to compute with.  [default: one per core that this process may use]",
            rich_help_panel=Panel.ENGINE,
        ),
    ] = None,
    cuda_graph: Annotated[
        bool,
        typer.Option(
            "--cuda-graph/--no-cuda-graph", help="Run each engine as one CUDA graph.", rich_help_panel=Panel.ENGINE
        ),
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Seed for the random inputs.")] = 0,
    receipt: Receipt = False,
    json: Json = False,
) -> None:
    """Measure latency and throughput on this machine, or compare two artifacts.

    Warms up until three windows of ten runs agree within 2 %, then times short blocks. Compares an INT8 graph with the FP32
    graph of its bundle. To learn whether INT8 is faster than FP16, give an FP16 bundle as --against.

    Examples:
        skdeploy bench build/mynet-int8 --batch 1,8
        skdeploy bench build/mynet-int8 --against build/mynet-fp16
    """
    from skdeploy.bench.measure import BenchOptions
    from skdeploy.bench.measure import bench as run
    from skdeploy.bench.subjects import parse_backends, parse_batches
    from skdeploy.cli.console import write_json
    from skdeploy.report.progress import ConsoleProgress

    options = BenchOptions(
        backends=parse_backends(backend),
        batches=parse_batches(batch),
        seconds=seconds,
        artifact=artifact,
        against=against,
        against_artifact=against_artifact,
        threads=threads,
        cuda_graph=cuda_graph,
        seed=seed,
        receipt=receipt,
        sizes=free_sizes(size),
    )
    with ConsoleProgress() as progress:
        report = run(bundle, options, progress)
    if json:
        write_json(report)
    else:
        _show(report)


def _show(report: BenchReport) -> None:
    from skdeploy.report.latency import bench_findings, comparison_text
    from skdeploy.report.terminal import Terminal

    terminal = Terminal()
    for found in report.measured:
        for row in found.latency.batches:
            time = f"{found.artifact} on {found.backend}, batch {row.batch}: {significant(row.host_ms.p50, 4)} ms"
            terminal.brief(time) if report.comparisons else terminal.headline(time, style="bold")
    for comparison in report.comparisons:
        terminal.headline(comparison_text(comparison), style="bold")
    section = bench_findings(report.measured, report.comparisons)
    terminal.section(replace(section, blocks=section.blocks[len(report.comparisons) :]))
    for found in report.measured:
        if found.receipt:
            terminal.say(f"receipt: {found.receipt}")
    for note in dict.fromkeys(report.notes):
        terminal.warn(note)

"""``skdeploy bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from skdeploy.bench.report import BenchReport


def bench(
    bundle: Annotated[Path, typer.Argument(help="The folder that an export made.")],
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Of torch, onnxruntime, onnxruntime-cuda, onnxruntime-tensorrt, tensorrt, tensorrt_rtx; one that is named "
            "must work here.  [default: all that do, but torch]",
        ),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,...", help="Sizes of batches.")] = "1",
    seconds: Annotated[float, typer.Option(help="How long each artifact is timed with each batch.")] = 3.0,
    artifact: Annotated[
        str | None,
        typer.Option(help="A file of the bundle, or torch.  [default: the last graph, and engines that run here]"),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Another bundle, timed in turn with this one, and compared.")
    ] = None,
    against_artifact: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The file of --against, or of this bundle, to be compared with."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads that compute on the CPU.  [default: as many as cores we may use]")
    ] = None,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph/--no-cuda-graph", help="Launch engines as one CUDA graph a run.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the random inputs.")] = 0,
    receipt: Annotated[
        bool, typer.Option("--receipt", help="Write what was measured here, on this device, to the bundle's receipts/.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")
    ] = False,
) -> None:
    """Measure latency and throughput on this machine, or compare two artifacts.

    Warms up until three windows of ten runs agree within 2 %, then times short blocks. An INT8 bundle is compared with its own
    FP32 graph; give --against an FP16 bundle to learn whether INT8 pays against that.
    """
    import sys

    from skdeploy.bench.measure import BenchOptions
    from skdeploy.bench.measure import bench as run
    from skdeploy.bench.subjects import parse_backends, parse_batches
    from skdeploy.cli.console import ConsoleProgress

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
    )
    with ConsoleProgress() as progress:
        report = run(bundle, options, progress)
    if json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
    else:
        _show(report)


def _show(report: BenchReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    from skdeploy.cli.console import output_console

    console = output_console()
    table = Table(box=None, pad_edge=False)
    for column in ("artifact", "backend"):
        table.add_column(column, overflow="fold")
    for column in ("batch", "min ms", "p50 ms", "p90 ms", "p99 ms", "device ms", "images/s", "runs"):
        table.add_column(column, justify="right")
    for found in report.measured:
        for row in found.latency.batches:
            host, device = row.host_ms, row.device_ms
            table.add_row(
                escape(found.artifact),
                found.backend,
                str(row.batch),
                *(f"{value:.3f}" for value in (host.min, host.p50, host.p90, host.p99)),
                f"{device.p50:.3f}" if device is not None else "",
                f"{row.images_per_second:.1f}",
                str(row.runs),
            )
    console.print(table)
    for comparison in report.comparisons:
        ratio = comparison.ratio
        console.print(
            escape(
                f"{comparison.artifact} is {ratio.verdict} than {comparison.against}"
                if ratio.verdict != "no difference"
                else f"{comparison.artifact} and {comparison.against}: no difference"
            )
            + f" on {comparison.backend}, batch {comparison.batch}: {ratio.ratio:.3f} times its latency, "
            f"95 % interval {ratio.low:.3f} to {ratio.high:.3f}, {ratio.pairs} pairs of blocks",
            soft_wrap=True,
        )
        if comparison.int8:
            console.print(escape(comparison.int8), soft_wrap=True)
    warned = list[str]()
    for found in report.measured:
        latency = found.latency
        threads = f", {latency.threads} threads" if latency.threads is not None else ""
        console.print(
            escape(f"{found.artifact} on {found.backend}: {found.device}{threads}; {latency.session}"), soft_wrap=True
        )
        unstable = [
            f"{found.artifact}, batch {row.batch}: not stable after {row.warm_up_seconds:.0f} s of warm-up"
            for row in latency.batches
            if not row.warm_up_stable
        ]
        warned += [*unstable, *latency.machine.warnings]
        if found.receipt:
            console.print(escape(f"receipt: {found.receipt}"), soft_wrap=True)
    for line in dict.fromkeys((*report.notes, *warned)):
        console.print(f"[yellow]![/yellow] {escape(line)}", soft_wrap=True)

"""``skdeploy build``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skdeploy.cli.export import Json
from skdeploy.cli.flags import FlagsOf, flattened
from skdeploy.line.options import BuildRequest

if TYPE_CHECKING:
    from skdeploy.line.building import Built

_MEMORY = {  # the names of a record's memory, and what they are called
    "weights_memory_bytes": "weights",
    "activation_memory_bytes": "activations",
    "workspace_bytes": "workspace limited to",
    "tactic_bytes": "tactics limited to",
}


def _build(
    bundle: Annotated[Path, typer.Argument(help="The folder that an export made.")],
    options: Annotated[dict[str, Any], FlagsOf(BuildRequest)],
    min_batch: Annotated[int | None, typer.Option(help="The engine's smallest batch.  [default: 1]")] = None,
    opt_batch: Annotated[int | None, typer.Option(help="The batch that the engine is tuned for.  [default: 8]")] = None,
    max_batch: Annotated[int | None, typer.Option(help="The engine's largest batch.  [default: 32]")] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(metavar="MIN/OPT/MAX", help="Batches as one option, such as 1/8/32; repeat for more profiles."),
    ] = None,
    workspace: Annotated[
        float | None, typer.Option(help="Limit of a kernel's scratch memory, GiB.  [Jetson: a quarter of what is free]")
    ] = None,
    tactic_memory: Annotated[
        float | None,
        typer.Option(
            help="Limit of what a kernel that is tried out may take, GiB, rounded down to a power of two.  "
            "[Jetson: half of what is free]"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Build an engine from a bundle's last graph, for this device, and add it to the bundle.

    Run it again and nothing is built unless an option or the device has changed.
    """
    from skdeploy.cli.console import ConsoleProgress
    from skdeploy.line.building import build_engine, gibibytes, profiles_of

    first, others = profiles_of(tuple(profile or ()), (min_batch, opt_batch, max_batch))
    request = BuildRequest(
        **options,
        profile=first,
        more_profiles=others,
        workspace_bytes=gibibytes("--workspace", workspace),
        tactic_bytes=gibibytes("--tactic-memory", tactic_memory),
    )
    with ConsoleProgress() as progress:
        built = build_engine(bundle, request, progress)
    if json:
        _print_json(built)
    else:
        _print_table(built)


build = flattened(_build)


def _print_table(built: Built) -> None:
    from rich.markup import escape
    from rich.table import Table

    from skdeploy.cli.console import output_console, size_text

    engine, console = built.artifact, output_console()
    table = Table(box=None, pad_edge=False)
    for column in ("engine", "precision", "size", "time"):
        table.add_column(column, justify="left" if column in ("engine", "precision") else "right", overflow="fold")
    seconds = "up to date" if built.reused else f"{engine.provenance.seconds:.1f} s"
    table.add_row(escape(engine.path), engine.precision or "", size_text(engine.size_bytes), seconds)
    console.print(
        escape(f"{built.bundle.manifest.model.name}  ->  {built.bundle.folder}"), style="italic", soft_wrap=True
    )
    console.print(table)
    for name, text in _lines(built):
        console.print(f"{name + ':':<9} {escape(text)}", soft_wrap=True)
    if built.unproven:
        console.print(f"[yellow]not proven here:[/yellow] {escape(built.unproven)}", soft_wrap=True)


def _lines(built: Built) -> list[tuple[str, str]]:
    from skdeploy.cli.console import size_text

    record = built.record
    lines = [
        ("why", built.reason),
        ("runs on", "; ".join(record.runs_on)),
        ("memory", ", ".join(f"{_MEMORY[name]} {size_text(count)}" for name, count in record.memory.items())),
        ("proof", record.proof.text() if record.proof else ""),
    ]
    return [(name, text) for name, text in lines if text]


def _print_json(built: Built) -> None:
    import json
    import sys

    artifact, proof = built.artifact, built.record.proof
    content = {
        "bundle": str(built.bundle.folder),
        "engine": artifact.path,
        "sha256": artifact.sha256,
        "size_bytes": artifact.size_bytes,
        "reused": built.reused,
        "build_seconds": artifact.provenance.seconds,
        "seconds": round(built.seconds, 3),
        "reason": built.reason,
        "unproven": built.unproven,
        "proof": proof.text() if proof else "",
        "options": artifact.provenance.options,
        "details": artifact.facts.dump(),
    }
    json.dump(content, sys.stdout, indent=2)
    sys.stdout.write("\n")

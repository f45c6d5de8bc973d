"""``skdeploy build``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skdeploy.cli.arguments import BundleFolder, Json, MaxBatch, MinBatch, OptBatch
from skdeploy.cli.flags import FlagsOf, flattened
from skdeploy.core.panel import Panel
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
    bundle: BundleFolder,
    options: Annotated[dict[str, Any], FlagsOf(BuildRequest)],
    min_batch: MinBatch = None,
    opt_batch: OptBatch = None,
    max_batch: MaxBatch = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MIN/OPT/MAX",
            help="All three batches in one option, such as 1/8/32; repeat for more profiles.",
            rich_help_panel=Panel.ENGINE,
        ),
    ] = None,
    workspace: Annotated[
        float | None,
        typer.Option(
            help="Most scratch memory for a kernel, in GiB.  [default on a Jetson: a quarter of the free memory]",
            rich_help_panel=Panel.ENGINE,
        ),
    ] = None,
    tactic_memory: Annotated[
        float | None,
        typer.Option(
            help="Most memory for trying out a kernel, in GiB, rounded down to a power of two.  "
            "[default on a Jetson: half of the free memory]",
            rich_help_panel=Panel.ENGINE,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Build an engine for this device from the bundle's last graph and add it to the bundle.

    A second run builds only if an option or the device has changed.

    Examples:
        skdeploy build build/mynet-fp16
        skdeploy build build/mynet-fp16 --target tensorrt_rtx --profile 1/4/16
    """
    from skdeploy.cli.console import write_json
    from skdeploy.line.building import build_engine, gibibytes, profiles_of
    from skdeploy.report.progress import ConsoleProgress

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
        write_json(_content(built))
    else:
        _show(built)


build = flattened(_build)


def _show(built: Built) -> None:
    from skdeploy.report.blocks import size_text
    from skdeploy.report.terminal import Terminal

    engine, terminal = built.artifact, Terminal()
    done = "the engine is up to date" if built.reused else "engine built"
    terminal.headline(f"{done}; it has not run yet" if built.unproven else done, style="bold green")
    if built.unproven:
        terminal.say(f"  -> `skdeploy verify {shlex.quote(str(built.bundle.folder))} --receipt` on the device")
    terminal.title(f"{built.bundle.manifest.model.name}  ->  {built.bundle.folder}")
    seconds = "kept" if built.reused else f"{engine.provenance.seconds:.1f} s"
    precision = engine.precision.words if engine.precision else ""
    row = (engine.path, precision, size_text(engine.size_bytes), seconds)
    terminal.table(("engine", "precision", ">size", ">time"), [row])
    for name, text in _lines(built):
        terminal.say(f"{name + ':':<9} {text}")
    if built.unproven:
        terminal.say(f"not run here: {built.unproven}")


def _lines(built: Built) -> list[tuple[str, str]]:
    from skdeploy.report.blocks import size_text

    record = built.record
    lines = [
        ("why", built.reason),
        ("runs on", "; ".join(record.runs_on)),
        ("memory", ", ".join(f"{_MEMORY[name]} {size_text(count)}" for name, count in record.memory.items())),
        ("proof", record.proof.text() if record.proof else ""),
    ]
    return [(name, text) for name, text in lines if text]


def _content(built: Built) -> dict[str, Any]:
    artifact, proof = built.artifact, built.record.proof
    return {
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

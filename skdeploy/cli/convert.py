"""``skdeploy convert``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from skdeploy.cli.arguments import Json
from skdeploy.core.panel import Panel


def convert(
    weights: Annotated[str, typer.Argument(help="Checkpoint in any known layout, a caffemodel, or hf://owner/name.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help=".safetensors file to write; its card gets the same name.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ],
    card: Annotated[
        str | None,
        typer.Option(help="Card of the weights, by name or path.  [default: infer the network and write a card]"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite existing files.", rich_help_panel=Panel.OUTPUT)
    ] = False,
    json: Json = False,
) -> None:
    """Convert a checkpoint to skdeploy's own format and write a card for it, unless one is given.

    Examples:
        skdeploy convert mynet.ckpt -o weights/mynet.safetensors
        skdeploy convert mynet.caffemodel -o caffe/mynet.safetensors
    """
    from skdeploy.checkpoints.convert import convert as run
    from skdeploy.cli.console import write_json
    from skdeploy.report.terminal import Terminal

    done = run(weights, output, card, force=force)
    if json:
        content = {
            "weights": str(done.weights),
            "sha256": done.sha256,
            "card": None if done.card is None else str(done.card),
            "layout": done.layout,
            "base": done.base or None,
            "tensors": done.tensors,
            "network": done.spec.network.model_dump(mode="json"),
            "input": list(done.spec.input.shape),
            "notes": list(done.notes),
            "assumptions": [assumption.model_dump(mode="json") for assumption in done.assumptions],
        }
        write_json(content)
        return
    network = done.spec.architecture
    kernels = network.selective_kernel
    branches = ", ".join(f"{b.kernel}x{b.kernel} dilation {b.dilation} groups {b.groups}" for b in kernels.branches)
    rows = {
        "layout": done.layout,
        "network": f"{network.family}, units {'-'.join(map(str, network.depths))}, {network.classes} classes",
        "branches": f"M={len(kernels.branches)}: {branches}",
        "fits": done.base or "no card of the zoo",
        "weights": f"{done.weights}, {done.tensors:,} tensors, sha256 {done.sha256[:12]}",
        "card": str(done.card) if done.card else f"none needed: {card} fits",
    }
    terminal = Terminal()
    terminal.brief(" and ".join(map(str, filter(None, (done.weights, done.card)))))
    terminal.facts(rows)
    for note in (*done.notes, *map(str, done.assumptions)):
        terminal.warn(note)
    if done.assumptions:
        terminal.say(
            "the weights do not show these values: check them in the card, and delete those that are right from "
            "its [assumed]"
        )
    if done.card:
        terminal.say(f"next: {shlex.join(['skdeploy', 'export', str(done.card)])}", whole=True)

"""``skdeploy convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    weights: Annotated[str, typer.Argument(help="Checkpoint of any known layout, a caffemodel, or hf://owner/name.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .safetensors file to write; its card gets the same name.")
    ],
    card: Annotated[
        str | None,
        typer.Option(help="The card they are for, by name or path; default: infer the network and write a card."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there already.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON on stdout.")] = False,
) -> None:
    """Turn a checkpoint into skdeploy's own weights and, where the network is inferred, a card for them."""
    from skdeploy.checkpoints.convert import convert as run

    done = run(weights, output, card, force=force)
    if json:
        import json as encoder

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
        print(encoder.dumps(content, indent=2))
        return

    from rich.markup import escape
    from rich.table import Table

    from skdeploy.cli.console import output_console

    network = done.spec.architecture
    kernels = network.selective_kernel
    branches = ", ".join(f"{b.kernel}x{b.kernel} dilation {b.dilation} groups {b.groups}" for b in kernels.branches)
    rows = {
        "layout": done.layout,
        "network": f"{network.family}, units {'-'.join(map(str, network.depths))}, {network.classes} classes",
        "branches": f"M={len(kernels.branches)}: {branches}",
        "fits": done.base or "no card of the zoo",
        "weights": f"{done.weights}, {done.tensors:,} tensors, sha256 {done.sha256[:12]}",
        "card": str(done.card) if done.card else f"none needed: {card} says it all",
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, escape(value))
    console = output_console()
    console.print(table)
    for note in done.notes:
        console.print(f"[yellow]![/yellow] {escape(note)}", soft_wrap=True)
    for assumption in done.assumptions:
        console.print(f"[yellow]![/yellow] {escape(str(assumption))}", soft_wrap=True)
    if done.assumptions:
        console.print(
            "weights do not show these: check them in the card, and take what is right out of its \\[assumed]",
            soft_wrap=True,
        )
    if done.card:
        console.print(f"next: skdeploy export {escape(str(done.card))}", soft_wrap=True)

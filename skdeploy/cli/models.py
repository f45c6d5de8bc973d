"""``skdeploy models``."""

from __future__ import annotations

from typing import Annotated

import typer


def models(
    name: Annotated[str | None, typer.Argument(help="One card, by name or path; default: list all.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON on stdout.")] = False,
) -> None:
    """List the networks that there are cards for, or show one card."""
    from skdeploy.zoo.cards import list_cards, load_card

    found = list_cards() if name is None else [load_card(name)]
    if json:
        import json as encoder

        cards = [spec.model_dump(mode="json", by_alias=True) for spec, _ in found]
        print(encoder.dumps(cards if name is None else cards[0], indent=2))
        return

    from rich.markup import escape
    from rich.table import Table

    from skdeploy.cli.console import output_console

    console = output_console()
    if name is None:
        table = Table(box=None, pad_edge=False)
        for column in ("name", "parameters", "MACs", "input", "weights", "about"):
            table.add_column(column, justify="right" if column in ("parameters", "MACs") else "left")
        for spec, _ in found:
            macs = f"{spec.reference.macs / 1e9:.2f} G" if spec.reference.macs else ""
            table.add_row(
                spec.name,
                f"{spec.reference.parameters:,}" if spec.reference.parameters else "",
                macs,
                "x".join(map(str, spec.input.shape)),
                "trained" if spec.weights else "none",
                escape(spec.summary),
            )
        console.print(table)
        return

    from skdeploy.zoo.fold import count_macs, count_parameters
    from skdeploy.zoo.sknet import meta_network

    spec, path = found[0]
    network_of_card = meta_network(spec)
    network, kernels, preprocess = spec.network, spec.network.selective_kernel, spec.preprocess
    branches = ", ".join(f"{b.kernel}x{b.kernel} dilation {b.dilation} groups {b.groups}" for b in kernels.branches)
    rows = {
        "card": str(path),
        "about": spec.summary,
        "network": f"{spec.family}, units {'-'.join(str(stage.units) for stage in network.stages)}, {network.classes} classes",
        "branches": f"M={len(kernels.branches)}: {branches}",
        "fuse": f"{kernels.fuse}, r={kernels.reduction}, L={kernels.min_width}",
        "input": "x".join(map(str, spec.input.shape)),
        "preprocess": f"resize {preprocess.resize} {preprocess.interpolation}, mean {preprocess.mean}, std {preprocess.std}",
        "parameters": f"{count_parameters(network_of_card):,} learnable",
        "MACs": f"{count_macs(network_of_card, spec.input.shape):,} for one image",
        "weights": f"{spec.weights.file}, sha256 {spec.weights.sha256[:12]}"
        if spec.weights
        else "none: give --weights, or export random ones",
        "source": f"{spec.source.paper}, {spec.source.url}",
        "licence": spec.source.licence,
    }
    published = spec.reference.model_dump(exclude_none=True)
    rows |= {f"reference {key.replace('_', ' ')}": f"{value:,}" for key, value in published.items()}
    rows |= {f"tolerance {precision}": str(tolerance) for precision, tolerance in spec.tolerance.items()}
    table = Table(title=spec.name, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, escape(value))
    console.print(table)

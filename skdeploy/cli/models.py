"""``skdeploy models``."""

from __future__ import annotations

from typing import Annotated

import typer


def models(
    name: Annotated[str | None, typer.Argument(help="One card, by name or path; default: list all.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON on stdout.")] = False,
) -> None:
    """List the networks that there are cards for, or show one card."""
    from skdeploy.zoo.cards import list_cards, load_interface_card

    found = list_cards() if name is None else [load_interface_card(name)]
    if json:
        import json as encoder

        cards = [spec.model_dump(mode="json", by_alias=True) for spec, _ in found]
        print(encoder.dumps(cards if name is None else cards[0], indent=2))
        return

    from rich.markup import escape
    from rich.table import Table

    from skdeploy.cli.console import output_console
    from skdeploy.zoo.describe import accuracy_text, count_text, describe

    console = output_console()
    if name is None:
        table = Table(box=None, pad_edge=False)
        for column in ("name", "parameters", "MACs", "input", "top-1", "weights", "source"):
            table.add_column(
                column,
                justify="right" if column in ("parameters", "MACs") else "left",
                overflow="fold",
                no_wrap=column == "name",
            )
        for spec, _ in found:
            table.add_row(
                spec.name,
                f"{spec.reference.parameters:,}" if spec.reference.parameters else "",
                count_text(spec.reference.macs),
                "x".join(map(str, spec.input.shape)),
                accuracy_text(spec),
                "trained" if spec.weights else "none",
                escape(spec.source.url.removeprefix("https://")),
            )
        console.print(table)
        console.print("top-1: as published for trained weights; `skdeploy models NAME` tells the rest, the licence too")
        return

    spec, path = found[0]
    table = Table(title=spec.name, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in {"card": str(path), **describe(spec)}.items():
        table.add_row(key, escape(value))
    console.print(table)

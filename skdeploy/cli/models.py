"""``skdeploy models``."""

from __future__ import annotations

from typing import Annotated

import typer

from skdeploy.cli.arguments import Json


def models(
    name: Annotated[str | None, typer.Argument(help="Card to show, by name or path.  [default: list all]")] = None,
    json: Json = False,
) -> None:
    """List the networks that skdeploy has cards for, or show one card.

    Examples:
        skdeploy models
        skdeploy models sknet50
    """
    from skdeploy.cli.console import write_json
    from skdeploy.report.blocks import Cell, Table, columns
    from skdeploy.report.terminal import Terminal
    from skdeploy.zoo.cards import list_cards, load_interface_card
    from skdeploy.zoo.describe import accuracy_text, count_text, describe

    found = list_cards() if name is None else [load_interface_card(name)]
    if json:
        cards = [spec.model_dump(mode="json", by_alias=True) for spec, _ in found]
        write_json({"cards": cards})
        return
    terminal = Terminal()
    for spec, _ in found:
        terminal.brief(spec.name)
    if name is not None:
        spec, path = found[0]
        terminal.facts({"card": str(path), **describe(spec)}, title=spec.name)
        return
    rows = tuple(
        (
            Cell(spec.name),
            Cell("x".join(map(str, spec.image.shape)) if spec.image is not None else spec.shown_inputs),
            Cell(accuracy_text(spec)),
            Cell("trained" if spec.weights else "none"),
            Cell(f"{spec.reference.parameters:,}" if spec.reference.parameters else ""),
            Cell(count_text(spec.reference.macs)),
            Cell(spec.source.url.removeprefix("https://")),
        )
        for spec, _ in found
    )
    labels = ("name", "input", "top-1", "weights", ">parameters", ">MACs", "source")
    terminal.show(Table("", columns(*labels), rows, least=2))
    terminal.say("top-1: as published for trained weights; `skdeploy models NAME` tells the rest, the licence too")

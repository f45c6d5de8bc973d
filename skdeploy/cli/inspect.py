"""``skdeploy inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A bundle, or one file: a card, .onnx, .safetensors, .pth, an engine of a bundle.")
    ],
    engine: Annotated[
        bool,
        typer.Option(
            "--engine",
            help="The bundle's engines: precision of each layer, memory, whether they run here. Exit 7 if wider.",
        ),
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="With --engine: every layer, one a line.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON on stdout.")] = False,
) -> None:
    """Show what a bundle or a file holds, after checking its digests."""
    from skdeploy.core.errors import UsageError
    from skdeploy.inspect.inspection import inspect_bundle, inspect_file, is_folder

    folder = is_folder(path)
    if layers and not engine:
        raise UsageError("--layers is of an engine's layers", advice="give --engine too")
    if engine:
        from skdeploy.cli.engines import show_engines

        if not folder:
            raise UsageError(f"{path} is a file: --engine is of a bundle", advice="give the bundle's folder")
        show_engines(path, layers=layers, json=json)
        return
    if folder:
        from skdeploy.accuracy.verdict import decide_verdict
        from skdeploy.cli.console import print_bundle, print_json

        facts = inspect_bundle(path)
        show = print_json if json else print_bundle
        show(facts.bundle, facts.parity, decide_verdict(facts))
        return
    rows = inspect_file(path)
    if json:
        import json as encoder

        print(encoder.dumps(rows, indent=2))
        return

    from rich.markup import escape
    from rich.table import Table

    from skdeploy.cli.console import output_console

    table = Table(title=escape(str(path)), title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in rows.items():
        text = "\n".join(map(str, value)) if isinstance(value, list) else str(value)
        table.add_row(key.replace("_", " "), escape(text))
    output_console().print(table)

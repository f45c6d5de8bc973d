"""``skdeploy inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skdeploy.cli.arguments import Json


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A bundle, or one file: a card, .onnx, .safetensors, .pth, or an engine of a bundle.")
    ],
    engine: Annotated[
        bool,
        typer.Option(
            "--engine",
            help="Show the bundle's engines: precision of layers, memory, whether they run here. Exit 7 if a layer runs in "
            "a wider precision than the graph.",
        ),
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="With --engine: list every layer.")] = False,
    json: Json = False,
) -> None:
    """Check the digests of a bundle or a file and show what is in it.

    Examples:
        skdeploy inspect build/mynet-int8
        skdeploy inspect build/mynet-fp16/model.onnx
    """
    from skdeploy.cli.console import write_json
    from skdeploy.core.errors import UsageError
    from skdeploy.inspect.inspection import inspect_bundle, inspect_file, is_folder
    from skdeploy.report.terminal import Terminal

    folder = is_folder(path)
    if layers and not engine:
        raise UsageError("--layers requires --engine", advice="add --engine")
    if engine:
        from skdeploy.cli.engines import show_engines

        if not folder:
            raise UsageError(f"--engine needs a bundle, and {path} is a file", advice="give the bundle's folder")
        show_engines(path, layers=layers, json=json)
        return
    if folder:
        from skdeploy.accuracy.verdict import decide_verdict
        from skdeploy.cli.console import bundle_json, print_bundle

        facts = inspect_bundle(path)
        found = facts.bundle, facts.parity, decide_verdict(facts)
        if json:
            write_json(bundle_json(*found))
        else:
            print_bundle(*found)
        return
    rows = inspect_file(path)
    if json:
        write_json(rows)
        return
    shown = {
        key.replace("_", " "): "\n".join(map(str, value)) if isinstance(value, list) else str(value)
        for key, value in rows.items()
    }
    terminal = Terminal()
    terminal.brief(f"{path}: readable")
    terminal.facts(shown, title=str(path))

"""``skdeploy inspect``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from skdeploy.cli.arguments import Json

SHOWN: Final = 12  # entries of a list: the rest is for machines
WHOLE: Final = ("shapes",)  # the tensors of a checkpoint: what one looks for when its layout is not known


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
    shown = {key.replace("_", " "): _text(value, None if key in WHOLE else SHOWN) for key, value in rows.items()}
    terminal = Terminal()
    terminal.headline(f"{path}: readable", style="bold")
    terminal.facts({name: text for name, text in shown.items() if text})
    if path.suffix == ".engine":
        terminal.say(f"its layers and whether it runs here: skdeploy inspect {shlex.quote(rows['bundle'])} --engine")


def _text(value: Any, shown: int | None) -> str:
    """A fact in words; of a list the first ``shown``, and of nested facts only that --json has them."""
    if isinstance(value, dict):
        if any(isinstance(inner, dict | list | tuple) for inner in value.values()):
            return "with --json"
        return ", ".join(f"{name.replace('_', ' ')} {inner}" for name, inner in value.items() if inner is not None)
    if isinstance(value, list | tuple):
        more = f"\nand {len(value) - shown:,} more, with --json" if shown is not None and len(value) > shown else ""
        return "\n".join(map(str, value[:shown])) + more
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)

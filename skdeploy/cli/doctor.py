"""``skdeploy doctor``."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(json: Annotated[bool, typer.Option("--json", help="Print as JSON on stdout.")] = False) -> None:
    """Say which backends and compilers work here, which don't and why, and what to install.

    Exits with 3 if something that every bundle needs to run does not work.
    """
    from skdeploy.inspect.diagnosis import diagnose

    diagnosis = diagnose()
    if json:
        import dataclasses
        import json as encoder

        print(encoder.dumps(dataclasses.asdict(diagnosis), indent=2))
    else:
        from rich.markup import escape
        from rich.table import Table

        from skdeploy.cli.console import output_console

        console = output_console()
        console.print(f"skdeploy {diagnosis.skdeploy}, Python {diagnosis.python}, {diagnosis.platform}")
        table = Table(box=None, pad_edge=False)
        for column in ("", "what", "version", "where", "why not, and what to do"):
            table.add_column(column, overflow="fold")
        for row in diagnosis.parts:
            mark = "[green]✓[/green]" if row.available else "[yellow]-[/yellow]"
            why = "" if row.available else ". ".join(part for part in (row.reason, row.install) if part)
            table.add_row(mark, row.name, row.version, escape(row.device), escape(why))
        console.print(table)
        for problem in diagnosis.problems:
            console.print(f"[red]problem:[/red] {escape(problem)}", soft_wrap=True)
        console.print(f"--target auto: {escape(diagnosis.auto_target)}", soft_wrap=True)
    if diagnosis.problems:
        raise typer.Exit(3)

"""``skdeploy doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from skdeploy.cli.arguments import Json

if TYPE_CHECKING:
    from skdeploy.inspect.diagnosis import Diagnosis


def doctor(json: Json = False) -> None:
    """Show which backends and compilers work here, why others do not, and what to install.

    Exits with 3 if a part that every bundle needs does not work.

    Examples:
        skdeploy doctor
        skdeploy doctor --json
    """
    import dataclasses

    from skdeploy.cli.console import write_json
    from skdeploy.inspect.diagnosis import diagnose

    diagnosis = diagnose()
    if json:
        write_json(dataclasses.asdict(diagnosis))
    else:
        _show(diagnosis)
    if diagnosis.problems:
        raise typer.Exit(3)


def _show(diagnosis: Diagnosis) -> None:
    from skdeploy.report.blocks import Cell
    from skdeploy.report.terminal import Terminal

    terminal = Terminal()
    for problem in diagnosis.problems:
        terminal.headline(("problem:", "red"), f" {problem}")
    if not diagnosis.problems:
        terminal.headline("bundles run here", style="bold green")
    terminal.say(f"skdeploy {diagnosis.skdeploy}, Python {diagnosis.python}, {diagnosis.platform}")
    rows = [
        (
            Cell("✓", tone="good") if part.available else Cell("-", tone="warn"),
            part.name,
            part.version,
            part.device if part.available else "does not work here",
        )
        for part in diagnosis.parts
    ]
    terminal.table(("", "what", "version", "where"), rows)
    terminal.say(f"--target auto: {diagnosis.auto_target}")
    absent: dict[tuple[str, str], list[str]] = {}
    for part in diagnosis.parts:
        if not part.available:
            absent.setdefault((part.reason, part.install), []).append(part.name)
    for (reason, install), names in absent.items():
        terminal.say((f"{', '.join(names)}:", "yellow"), f" {reason}")
        if install:
            terminal.say(f"  -> {install}")

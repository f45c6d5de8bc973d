"""Each `skdeploy` command in the documentation is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from skdeploy.cli import app

ROOT = Path(__file__).resolve().parents[2]
COMMANDS: Any = typer.main.get_command(app)
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *ROOT.glob("[a-z]*/README.md"),
    *sorted(ROOT.glob("docs/**/*.md")),
]
BLOCK = re.compile(r"^```(?:sh|console)?\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """Commands in blocks of shell, continuations joined, and in backquotes."""
    lines = [line for block in BLOCK.findall(text) for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    found = [line.removeprefix("$ ") for line in lines] + re.findall(r"`(skdeploy [a-z][^`]*)`", BLOCK.sub("", text))
    return [line for line in found if line.startswith("skdeploy ")]


def parse(command: str) -> None:
    """Raises KeyError for another verb, and click's error for another option or one without its value."""
    verb, *rest = shlex.split(command, comments=True)[1:]
    if verb.startswith("-") or "..." in rest:  # of no verb; of any options
        return
    found = COMMANDS.commands[verb]
    found.make_parser(found.context_class(found)).parse_args(rest)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands(page.read_text("utf-8"))], ids=lambda page: page.name
)
def test_every_command_is_parsed(page: Path) -> None:
    for command in commands(page.read_text(encoding="utf-8")):
        parse(command)


def test_most_pages_have_commands() -> None:
    assert sum(len(commands(page.read_text(encoding="utf-8"))) for page in PAGES) > 60


@pytest.mark.parametrize("command", ["skdeploy exprot x", "skdeploy export x --fp61", "skdeploy export x --weights"])
def test_a_command_that_is_none_is_noticed(command: str) -> None:
    (found,) = commands(f"```sh\n{command}   # a comment\n```\n")
    with pytest.raises((KeyError, typer.BadParameter.__mro__[1])):  # click's UsageError
        parse(found)

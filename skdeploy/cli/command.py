"""Verbs as commands: what every verb has, whoever registers it, is given to it here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from skdeploy.cli.help_text import Context, text_and_examples, write_options
from skdeploy.core.panel import Panel
from skdeploy.report.voice import voice

OTHER_VERBS: Final = "Other verbs"
HELP_NAMES: Final = ("-h", "--help")


@dataclass(frozen=True)
class Verb:
    """Where the verb's function is, and the first line of its help, which ``skdeploy --help`` shows without importing it.

    ``panel``: the heading that it is listed under. ``documents``: what it prints with ``--json``, each as
    ``module:Class`` of a pydantic model, for ``--json-schema``. ``forwards``: what follows its first argument belongs to
    another verb, options too. ``hidden``: an old name, which works and is not listed.
    """

    function: str
    help: str
    panel: str = OTHER_VERBS
    documents: tuple[str, ...] = ()
    forwards: bool = False
    hidden: bool = False


class VerbCommand(TyperCommand):
    """Typer's command, with ``-h``, options in panels, the examples of the docstring, and options from a file.

    ``verbs``: the names that the file may have tables for; ``file``: which one it is.
    """

    context_class = Context

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.verbs: Collection[str] = ()
        self.file = ""
        self.help, self.examples = text_and_examples(self.help or "")
        self.context_settings = {"help_option_names": list(HELP_NAMES)} | dict(self.context_settings)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """With the options of a file as defaults; completing a line reads none."""
        from skdeploy.cli.config import defaults, read_tables

        if not extra.get("resilient_parsing"):
            self.file, tables = read_tables(Path(), self.verbs)
            table = tables.get(self.name or "", {})
            extra["default_map"] = defaults(self.file, self.name or "", table, self.params)
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        from skdeploy.cli.config import from_file

        if taken := from_file(ctx):
            voice().note(f"from {self.file}: {taken}")
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        parameters = self.get_params(ctx)
        parameters[-1].rich_help_panel = Panel.OUTPUT  # type: ignore[attr-defined]  # --help, an option
        write_options(parameters, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        del ctx
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.splitlines():
                    formatter.write(f"  {line}\n")


class Commands(MutableMapping[str, Any]):
    """The verbs as Typer's commands, each made when it is first asked for."""

    def __init__(self, verbs: Mapping[str, Verb]) -> None:
        self._verbs = verbs
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = _command(name, self._verbs)
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._verbs)

    def __len__(self) -> int:
        return len(self._verbs)


def _command(name: str, verbs: Mapping[str, Verb]) -> Any:
    from skdeploy.cli.heard import heard  # here, as in the methods above: `skdeploy -h` does without

    verb = verbs[name]
    module, _, function = verb.function.partition(":")
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    settings = {"allow_interspersed_args": False} if verb.forwards else None
    single.command(name, cls=VerbCommand, context_settings=settings)(
        heard(getattr(import_module(module), function), name, verb.documents)
    )
    command = typer.main.get_command(single)
    command.verbs = verbs  # type: ignore[attr-defined]  # a VerbCommand
    return command


class VerbGroup(TyperGroup):
    """Typer's group over verbs, whose help and completion import none of them. A subclass names the ``verbs``."""

    context_class = Context
    verbs: Mapping[str, Verb] = {}

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**{**attributes, "commands": {}})
        self.commands = Commands(self.verbs)

    @property
    def shown(self) -> dict[str, Verb]:
        """Those that are listed, in the order of use."""
        return {name: verb for name, verb in self.verbs.items() if not verb.hidden}

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The verbs come first: they are what a reader looks for."""
        panels: dict[str, list[tuple[str, str]]] = {}
        width = max(map(len, self.shown))
        for name, verb in self.shown.items():
            panels.setdefault(verb.panel, []).append((f"{name:<{width}}", verb.help))
        for title, rows in panels.items():
            with formatter.section(title):
                formatter.write_dl(rows)
        write_options(self.get_params(ctx), ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """The verbs' names, as the registry says them."""
        from typer.core import CompletionItem  # type: ignore[attr-defined]  # click's

        found = [
            CompletionItem(name, help=verb.help) for name, verb in self.shown.items() if name.startswith(incomplete)
        ]
        return [*found, *TyperCommand.shell_complete(self, ctx, incomplete)]

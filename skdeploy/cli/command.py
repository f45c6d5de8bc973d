"""Verbs as commands: what every verb has, whoever registers it, is given to it here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from skdeploy.cli.heard import heard
from skdeploy.cli.help_text import Context, text_and_examples, write_options
from skdeploy.core.panel import Panel

OTHER_VERBS: Final = "Other verbs"
HELP_NAMES: Final = ("-h", "--help")


@dataclass(frozen=True)
class Verb:
    """Where the verb's function is, and the first line of its help, which ``skdeploy --help`` shows without importing it.

    ``panel``: the heading that it is listed under. ``forwards``: what follows its first argument belongs to another verb,
    options too. ``hidden``: an old name, which works and is not listed.
    """

    function: str
    help: str
    panel: str = OTHER_VERBS
    forwards: bool = False
    hidden: bool = False


class VerbCommand(TyperCommand):
    """Typer's command, with ``-h``, options in panels, and the examples of the docstring."""

    context_class = Context

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.help, self.examples = text_and_examples(self.help or "")
        self.context_settings = {"help_option_names": list(HELP_NAMES)} | dict(self.context_settings)

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
            self._made[name] = _command(name, self._verbs[name])
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._verbs)

    def __len__(self) -> int:
        return len(self._verbs)


def _command(name: str, verb: Verb) -> Any:
    module, _, function = verb.function.partition(":")
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    settings = {"allow_interspersed_args": False} if verb.forwards else None
    single.command(name, cls=VerbCommand, context_settings=settings)(heard(getattr(import_module(module), function)))
    return typer.main.get_command(single)


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

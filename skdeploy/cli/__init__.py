"""The command line: one verb a file. Arguments, progress and printing; no logic. A verb is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup


@dataclass(frozen=True)
class Verb:
    """Where the verb's function is, and the first line of its help, which ``skdeploy --help`` shows without importing it.

    ``forwards``: what follows its first argument belongs to another verb, options too. ``hidden``: an old name, which works
    and is not listed.
    """

    function: str
    help: str
    forwards: bool = False
    hidden: bool = False


# A new verb is one module, and a line here.
VERBS: Final[dict[str, Verb]] = {
    "export": Verb(
        "skdeploy.cli.export:export",
        "Export a network to ONNX and an engine, in the precision you choose, and check each step against the original.",
    ),
    "build": Verb(
        "skdeploy.cli.build:build",
        "Build an engine for this device from the bundle's last graph and add it to the bundle.",
    ),
    "calibrate": Verb(
        "skdeploy.cli.calibrate:calibrate",
        "Measure a network's tensor ranges on images and write them to a file for `export --ranges`.",
    ),
    "convert": Verb(
        "skdeploy.cli.convert:convert",
        "Convert a checkpoint to skdeploy's own format and write a card for it, unless one is given.",
    ),
    "init": Verb(
        "skdeploy.cli.init:init",
        "Write a card for an ONNX file or a module, for you to complete. Overwrites no file.",
    ),
    "verify": Verb(
        "skdeploy.cli.verify:verify",
        "Check a bundle's digests and receipts, and measure parity again on every backend that works here.",
    ),
    "evaluate": Verb(
        "skdeploy.cli.evaluate:evaluate",
        "Measure accuracy on labelled images, compare it with the FP32 graph, and fail if the drop is too large.",
    ),
    "predict": Verb(
        "skdeploy.cli.predict:predict",
        "Print the five most likely classes of each image, with their probabilities.",
    ),
    "bench": Verb(
        "skdeploy.cli.bench:bench",
        "Measure latency and throughput on this machine, or compare two artifacts.",
    ),
    "plan": Verb(
        "skdeploy.cli.plan:plan",
        "Estimate the best possible latency of a graph on a device, what limits it, and which export options fit.",
    ),
    "compare": Verb(
        "skdeploy.cli.compare:compare",
        "Old name of `skdeploy evaluate NEW --against OLD`, with the same options.",
        hidden=True,
    ),
    "report": Verb(
        "skdeploy.cli.report:report",
        "Check a bundle's digests and write everything known about it to one HTML file.",
    ),
    "sensitivity": Verb(
        "skdeploy.cli.sensitivity:sensitivity",
        "Measure how much accuracy each unit of the network loses in INT8: alone in INT8, and alone not in INT8.",
    ),
    "attention": Verb(
        "skdeploy.cli.attention:attention",
        "Repeat the paper's experiment in each precision: do units choose larger kernels for larger objects?",
    ),
    "models": Verb(
        "skdeploy.cli.models:models",
        "List the networks that skdeploy has cards for, or show one card.",
    ),
    "inspect": Verb(
        "skdeploy.cli.inspect:inspect",
        "Check the digests of a bundle or a file and show what is in it.",
    ),
    "doctor": Verb(
        "skdeploy.cli.doctor:doctor",
        "Show which backends and compilers work here, why others do not, and what to install.",
    ),
    "start": Verb(
        "skdeploy.cli.start:start",
        "Build the bundle's engine for this device, or take it from the cache, then run a verb with it.",
        forwards=True,
    ),
}


class Commands(MutableMapping[str, Any]):
    """The verbs as Typer's commands, each made when it is first asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = _command(name, VERBS[name])
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)


def _command(name: str, verb: Verb) -> Any:
    module, _, function = verb.function.partition(":")
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    settings = {"allow_interspersed_args": False} if verb.forwards else None
    single.command(name, context_settings=settings)(getattr(import_module(module), function))
    return typer.main.get_command(single)


class VerbGroup(TyperGroup):
    """Typer's group over ``Commands``, whose help imports no verb."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**{**attributes, "commands": {}})
        self.commands = Commands()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """As Typer does, from what the registry says."""
        del ctx
        limit = formatter.width - 6 - max(map(len, VERBS))
        shown = {name: verb for name, verb in VERBS.items() if not verb.hidden}
        rows = [(name, TyperCommand(name, help=verb.help).get_short_help_str(limit)) for name, verb in shown.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


app = typer.Typer(
    name="skdeploy",
    cls=VerbGroup,
    help="Turn a trained Selective Kernel Network into a verified inference engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        from skdeploy.core.version import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Turn a trained Selective Kernel Network into a verified inference engine."""
    del version

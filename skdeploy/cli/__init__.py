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
        "Take a network through the whole line: ONNX, simplified, lower precision, engine, parity, bundle.",
    ),
    "build": Verb(
        "skdeploy.cli.build:build",
        "Build an engine from a bundle's last graph, for this device, and add it to the bundle.",
    ),
    "calibrate": Verb(
        "skdeploy.cli.calibrate:calibrate",
        "Measure the ranges of a network's tensors on images, into a file to review, commit and give to `export --ranges`.",
    ),
    "convert": Verb(
        "skdeploy.cli.convert:convert",
        "Turn a checkpoint into skdeploy's own weights and, where the network is inferred, a card for them.",
    ),
    "init": Verb(
        "skdeploy.cli.init:init",
        "Write a card to fill in for an ONNX file or a module. No file is overwritten.",
    ),
    "verify": Verb(
        "skdeploy.cli.verify:verify",
        "Check a bundle's digests and receipts and measure parity again, on every backend that works here.",
    ),
    "evaluate": Verb(
        "skdeploy.cli.evaluate:evaluate",
        "Measure accuracy on labelled images, paired with the FP32 graph, and hold the drop to a budget.",
    ),
    "predict": Verb(
        "skdeploy.cli.predict:predict",
        "Print the five likeliest classes of each image, with their probabilities.",
    ),
    "bench": Verb(
        "skdeploy.cli.bench:bench",
        "Measure latency and throughput on this machine, or compare two artifacts.",
    ),
    "plan": Verb(
        "skdeploy.cli.plan:plan",
        "Before building: what a graph costs on a device at the least, what limits it, and how to export it for that.",
    ),
    "compare": Verb(
        "skdeploy.cli.compare:compare",
        "The old name of `skdeploy evaluate NEW --against OLD`, with the same options.",
        hidden=True,
    ),
    "report": Verb(
        "skdeploy.cli.report:report",
        "Write all that is known of a bundle as one HTML file, after checking its digests.",
    ),
    "sensitivity": Verb(
        "skdeploy.cli.sensitivity:sensitivity",
        "Show which part of the network loses how much to INT8: each alone in INT8, and each alone out of it.",
    ),
    "attention": Verb(
        "skdeploy.cli.attention:attention",
        "Measure whether units choose larger kernels for larger objects, as the paper's experiment does, in each precision.",
    ),
    "models": Verb(
        "skdeploy.cli.models:models",
        "List the networks that there are cards for, or show one card.",
    ),
    "inspect": Verb(
        "skdeploy.cli.inspect:inspect",
        "Show what a bundle or a file holds, after checking its digests.",
    ),
    "doctor": Verb(
        "skdeploy.cli.doctor:doctor",
        "Say which backends and compilers work here, which don't and why, and what to install.",
    ),
    "start": Verb(
        "skdeploy.cli.start:start",
        "Build the bundle's engine for this device, or find it in the cache, then run a verb on it.",
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
    help="From a trained Selective Kernel Network to a verified inference engine.",
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
    """From a trained Selective Kernel Network to a verified inference engine."""
    del version

"""The options that say how much a verb prints: declared once, for every verb, also one that another package registers."""

from __future__ import annotations

import functools
import inspect
import json
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

import typer

from skdeploy.cli.arguments import LogFile, Quiet, Verbose
from skdeploy.core.errors import UsageError
from skdeploy.core.panel import Panel
from skdeploy.report.voice import voice

OPTIONS: Final[dict[str, tuple[Any, Any]]] = {
    "quiet": (Quiet, False),
    "verbose": (Verbose, False),
    "log_file": (LogFile, None),
}


def heard(verb: Callable[..., None], name: str, documents: Sequence[str]) -> Callable[..., None]:
    """The verb with the options of its voice; one that has an option of such a name keeps its own. ``documents`` are what it
    prints with ``--json``; a verb that has some shows their schema too.
    """
    hints = get_type_hints(verb, include_extras=True)
    own = inspect.signature(verb).parameters
    shown = {
        name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints.get(name, parameter.annotation))
        for name, parameter in own.items()
    }
    added = {name: declared for name, declared in OPTIONS.items() if name not in own}
    if documents:
        added["json_schema"] = (_schema_option(name, documents), False)
    for option, (annotation, default) in added.items():
        shown[option] = inspect.Parameter(
            option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )

    @functools.wraps(verb)
    def run(**given: Any) -> None:
        given.pop("json_schema", None)
        speak(**{option: given.pop(option) for option in added if option in given})
        verb(**given)

    run.__signature__ = inspect.Signature(list(shown.values()))  # type: ignore[attr-defined]  # what Typer reads
    run.__annotations__ = {name: parameter.annotation for name, parameter in shown.items()}
    return run


def _schema_option(verb: str, documents: Sequence[str]) -> Any:
    def show(asked: bool) -> None:
        if asked:
            from skdeploy.cli.documents import schema_of

            print(json.dumps(schema_of(f"skdeploy {verb} --json", documents), indent=2))
            raise typer.Exit

    return Annotated[
        bool,
        typer.Option(
            "--json-schema",
            callback=show,
            is_eager=True,
            expose_value=False,
            help="Print the JSON Schema of --json, and exit.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ]


def speak(*, quiet: bool = False, verbose: bool = False, log_file: Path | None = None) -> None:
    """Set the voice of this run. A verb that another verb runs only adds to what that one was given.

    Raises UsageError for options that contradict each other, and for a file that cannot be written.
    """
    own = voice()
    own.quiet, own.verbose = own.quiet or quiet, own.verbose or verbose
    if own.quiet and own.verbose:
        raise UsageError("--quiet and --verbose contradict each other", advice="give one of them")
    if log_file is not None:
        try:
            own.open_log(log_file)
        except OSError as error:
            raise UsageError(
                f"cannot write the log {log_file}: {error.strerror}", advice="give another --log-file"
            ) from error
        from skdeploy.core.version import __version__

        own.log(f"skdeploy {__version__}, Python {platform.python_version()}, {platform.platform()}, in {Path.cwd()}")
        own.log(" ".join(["skdeploy", *sys.argv[1:]]))

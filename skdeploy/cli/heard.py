"""The options that say how much a verb prints: declared once, for every verb, also one that another package registers."""

from __future__ import annotations

import functools
import inspect
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, get_type_hints

from skdeploy.cli.arguments import LogFile, Quiet, Verbose
from skdeploy.core.errors import UsageError
from skdeploy.report.voice import voice

OPTIONS: Final[dict[str, tuple[Any, Any]]] = {
    "quiet": (Quiet, False),
    "verbose": (Verbose, False),
    "log_file": (LogFile, None),
}


def heard(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with the options of its voice; one that has an option of such a name keeps its own."""
    hints = get_type_hints(verb, include_extras=True)
    own = inspect.signature(verb).parameters
    shown = {
        name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints.get(name, parameter.annotation))
        for name, parameter in own.items()
    }
    added = {name: declared for name, declared in OPTIONS.items() if name not in own}
    for name, (annotation, default) in added.items():
        shown[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    @functools.wraps(verb)
    def run(**given: Any) -> None:
        speak(**{name: given.pop(name) for name in added})
        verb(**given)

    run.__signature__ = inspect.Signature(list(shown.values()))  # type: ignore[attr-defined]  # what Typer reads
    run.__annotations__ = {name: parameter.annotation for name, parameter in shown.items()}
    return run


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

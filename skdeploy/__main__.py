"""Runs the command line; the only place that turns an error into an exit code."""

from __future__ import annotations

import atexit
import errno
import os
import sys
import traceback
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from skdeploy.core.errors import IntegrityError, SkdeployError, UsageError
from skdeploy.core.interruption import (
    INTERRUPTED_EXIT_CODE,
    TERMINATED_EXIT_CODE,
    Termination,
    termination_raises,
)
from skdeploy.core.memory import keep_freed
from skdeploy.report.voice import Voice, speaking

BUG_EXIT_CODE = 1
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_FOLDER = "No usable temporary directory"


def main() -> None:
    """Exits with the code of what happened; docs/reference/exit-codes.md lists them. SIGTERM ends a job as Ctrl-C does."""
    with termination_raises() as termination, speaking() as voice:
        try:
            code = _run(voice, termination)
        except KeyboardInterrupt:  # while packages are imported, too
            code = INTERRUPTED_EXIT_CODE
        sys.exit(_interrupted(termination) if code == INTERRUPTED_EXIT_CODE else code)


def process() -> NoReturn:
    """``main`` for a process of its own. It keeps the memory that it frees, and ends without taking torch's modules apart: that
    takes over a second. What others have registered for the end still runs, and both streams are flushed.
    """
    keep_freed()
    try:
        main()
    except SystemExit as ended:
        if "torch" not in sys.modules or not isinstance(ended.code, int):
            raise
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(ended.code)
    raise AssertionError("main always exits")


def _run(voice: Voice, termination: Termination) -> int:
    from typer import Abort, BadParameter

    from skdeploy.cli import app
    from skdeploy.cli.encoding import print_anything

    print_anything(as_json="--json" in sys.argv)
    usage_error: Any = BadParameter.__mro__[1]  # click's, which Typer brings along but does not export
    try:
        _require_working_directory()
        _require_values()
        code = _told_as_it_came(app, termination)
        sys.stdout.flush()  # a full disk under a redirected stdout is told here, not by Python's exit
    except SkdeployError as error:
        voice.error(error.message, error.advice)
        where = traceback.format_exc()
        voice.log(where)
        if voice.verbose:
            print(where, file=sys.stderr)
        _report(type(error).__name__, error.message, error.advice, error.exit_code)
        sys.exit(error.exit_code)
    except usage_error as error:
        error.message = error.message.removeprefix("Value error, ")  # pydantic's words, which Typer passes on
        error.show()
        _report("UsageError", error.format_message(), "`skdeploy VERB --help` lists the options", UsageError.exit_code)
        sys.exit(UsageError.exit_code)
    except Abort:  # older Typers make one of a KeyboardInterrupt; newer ones return its code
        code = INTERRUPTED_EXIT_CODE
    except OSError as error:
        if error.errno not in NO_SPACE:
            _report_bug(error)
        print(f"error: no space left to write the output: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in stdout's buffer has no place to go
        sys.exit(IntegrityError.exit_code)
    except Exception as error:  # anything else is a bug of ours, and must not look like a user's mistake
        _report_bug(error)
    return int(code or 0)


def _told_as_it_came(app: Any, termination: Termination) -> Any:
    """The code that the command line gives. An error after a signal is what a library made of the signal."""
    try:
        return app(standalone_mode=False)
    except Exception as error:  # packages turn a signal during their native import into any error of theirs
        if termination.came:
            raise KeyboardInterrupt from error
        found = (
            error.__context__ if isinstance(error, RuntimeError) else error
        )  # pathlib makes one of a loop, up to 3.12
        if isinstance(found, FileNotFoundError) and NO_FOLDER in str(found):  # Python's tempfile, wherever it is asked
            raise UsageError(
                f"no temporary folder takes files: {found.strerror}",
                advice="set TMPDIR to a folder that you may write to",
            ) from error
        from skdeploy.core.files import NO_NAMES, name_error, shortened

        if not isinstance(found, OSError) or found.errno not in NO_NAMES:
            raise
        raise name_error(shortened(str(found.filename)), found) from error


def _require_working_directory() -> None:
    """Raises UsageError where it was removed: no relative path leads anywhere then, and Intel's MKL ends the process."""
    try:
        Path.cwd()
    except OSError as error:
        raise UsageError(
            f"the working directory cannot be used: {error.strerror}", advice="change to a folder that is there"
        ) from error


def _require_values() -> None:
    """Raises UsageError for an empty word, as of a variable that is not set: as a path it would be the working directory."""
    for before, word in pairwise(sys.argv):
        option, value_follows, value = word.partition("=")
        if not word or (word.startswith("--") and value_follows and not value):
            shown = (
                f"the value of {option or before}" if word or before.startswith("-") else f"the word after {before!r}"
            )
            raise UsageError(
                f"{shown} is empty", advice="a variable in the command may not be set: give a value, or leave it out"
            )


def _interrupted(termination: Termination) -> int:
    """The exit code, once it is said what has come."""
    kind, word = ("Terminated", "terminated") if termination.asked else ("KeyboardInterrupt", "interrupted")
    code = TERMINATED_EXIT_CODE if termination.asked else INTERRUPTED_EXIT_CODE
    print(f"{word}: no file is half-written; run the same command again to continue", file=sys.stderr)
    _report(kind, word, "run the same command to continue", code)
    return code


def _report_bug(error: Exception) -> NoReturn:
    traceback.print_exc()
    print(
        "\nThis is a bug in skdeploy. Please report it, with the lines above and the output of `skdeploy doctor`.",
        file=sys.stderr,
    )
    _report(type(error).__name__, str(error), "report this bug", BUG_EXIT_CODE)
    sys.exit(BUG_EXIT_CODE)


def _report(kind: str, message: str, advice: str, exit_code: int) -> None:
    """For --json, the error on stdout as well: a machine reads one stream."""
    if "--json" in sys.argv:
        import json

        from skdeploy.cli.encoding import JSON_SCHEMA

        error = {"type": kind, "message": message, "advice": advice, "exit_code": exit_code}
        print(json.dumps({"schema": JSON_SCHEMA, "error": error}, indent=2))


if __name__ == "__main__":
    process()

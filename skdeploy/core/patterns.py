"""Regular expressions from a command line or a recipe: those that would not end are refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Final

from skdeploy.core.errors import UsageError
from skdeploy.core.listing import some

SECONDS: Final = 5.0  # for all modules of a network; an ordinary pattern takes a millisecond
# Two repetitions over one name cost its length squared at worst. More, or of a group, may be exponential.
FEW: Final = 2
REPEATS: Final = re.compile(r"[*+?{]")
REPEATED_GROUP: Final = re.compile(r"\)[*+{]")
SEARCH: Final = "import json, re, sys; p, names = json.load(sys.stdin); [re.search(p, name) for name in names]"


def modules_matched(patterns: Iterable[str], modules: Collection[str], option: str = "") -> dict[str, str]:
    """The modules that a pattern matches (``re.search``), each with the first that does. Errors begin with ``option``.

    Raises UsageError for a pattern that ``check_ends`` refuses, and for one that matches no module.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        check_ends(pattern, modules, option)
        matching = [module for module in modules if re.search(pattern, module)]
        if not matching:
            known = some(sorted(filter(None, modules)))
            raise UsageError(
                f"{option}{pattern!r} matches no module",
                advice=f"modules are {known}; `skdeploy inspect BUNDLE/model.onnx` lists all",
            )
        found = dict.fromkeys(matching, pattern) | found
    return found


def check_ends(pattern: str, modules: Iterable[str], option: str = "") -> None:
    """Raise UsageError for what is not a regular expression, or takes longer than ``SECONDS`` to search these names.

    Python's engine backtracks and cannot be stopped in its own process, so a pattern that may be slow is tried in another.
    """
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"{option}{pattern!r} is not a regular expression: {error}") from error
    if len(REPEATS.findall(pattern)) > FEW or REPEATED_GROUP.search(pattern):
        _try(pattern, tuple(sorted(set(modules))))


@lru_cache(maxsize=64)
def _try(pattern: str, modules: tuple[str, ...]) -> None:
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", SEARCH],
            input=json.dumps([pattern, modules]).encode(),
            timeout=SECONDS,
            check=True,
            capture_output=True,
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(
            f"searching the network's {len(modules)} modules for the regular expression {pattern!r} takes more "
            f"than {SECONDS:g} s",
            advice="use a pattern without nested repetition: `^stages\\.1\\.` matches every name that begins like this",
        ) from error
    except (subprocess.CalledProcessError, OSError) as error:
        raise UsageError(f"cannot try the regular expression {pattern!r}: {error}") from error


def module_of(name: str | None) -> str:
    """The module that a node or value belongs to; empty for the network's own forward."""
    return (name or "").rpartition("/")[0]


def modules_pattern(modules: Iterable[str]) -> str:
    """The regular expression that ``--keep-fp32`` needs for exactly these modules."""
    return f"^({'|'.join(re.escape(module) for module in sorted(set(modules)))})$"

"""TOML files that people write, and the reason for a refused one, in a line: for cards and recipes."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from skdeploy.core.errors import UsageError
from skdeploy.core.files import read_file

LARGEST: Final = 1 << 20  # bytes; a card or recipe is a page of numbers, and a larger file is something else
WIDEST: Final = 128  # bits; nobody reads a longer integer, and Python prints none of more than 4,300 digits
LONGEST: Final = 80  # characters of a key or a value


def read_toml(path: Path, kind: str, error_class: type[UsageError], advice: str) -> dict[str, Any]:
    """Return what the file at ``path`` holds; ``kind`` is what messages call it. Raises ``error_class``."""
    named = f"the {kind} {path}"
    try:
        content = tomllib.loads(read_file(path, LARGEST).decode("utf-8-sig"))
    except OSError as error:
        raise error_class(f"cannot read {named}: {error.strerror}", advice=advice) from error
    except UnicodeDecodeError as error:
        raise error_class(f"{named} is not UTF-8 text", advice=advice) from error
    except tomllib.TOMLDecodeError as error:
        raise error_class(f"{named} is not valid TOML: {error}", advice=advice) from error
    except (RecursionError, ValueError) as error:  # arrays a thousand deep; integers of thousands of digits
        raise error_class(f"{named} cannot be read: {unreadable(error)}", advice=advice) from error
    if text := unprintable(content):
        raise error_class(f"{named} has a control character in {text}", advice="remove it")
    return content


def unreadable(error: RecursionError | ValueError) -> str:
    """Return why Python's parser gave up on text that may be valid TOML: tables a thousand deep, integers of kilobytes."""
    return "values are nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]


def unprintable(content: dict[str, object]) -> str:
    """Return the first text with a control character, such as NUL or a terminal's escape, as the file has it; else nothing."""
    waiting: list[object] = [content]  # no recursion: tables are as deep as the file likes
    while waiting:
        given = waiting.pop()
        if isinstance(given, dict):
            waiting += [*given.keys(), *given.values()]
        elif isinstance(given, list):
            waiting += given
        elif isinstance(given, str) and any(ord(c) < 32 or 127 <= ord(c) < 160 for c in given if c not in "\t\r\n"):
            return shown_value(given)
    return ""


def shown_key(parts: Iterable[object]) -> str:
    """Return a key as it stands in a file, with dots, shortened."""
    text = ".".join(map(str, parts))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def shown_value(given: object) -> str:
    """Return a value as it stands in the file, shortened."""
    if isinstance(given, int) and given.bit_length() > WIDEST:
        return f"an integer of {given.bit_length():,} bits"
    text = repr(given)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."

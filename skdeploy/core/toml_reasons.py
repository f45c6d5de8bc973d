"""Reasons for a refused TOML file, in a line: for cards and recipes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

WIDEST: Final = 128  # bits; nobody reads a longer integer, and Python prints none of more than 4,300 digits
LONGEST: Final = 80  # characters of a key or a value


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

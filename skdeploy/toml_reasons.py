"""Reasons for a refused TOML file, in a line: for cards and recipes."""

from __future__ import annotations

from typing import Final

WIDEST: Final = 128  # bits; nobody reads a longer integer, and Python prints none of more than 4,300 digits
LONGEST: Final = 80  # characters of a value


def unreadable(error: RecursionError | ValueError) -> str:
    """Return why Python's parser gave up on text that may be valid TOML: tables a thousand deep, integers of kilobytes."""
    return "tables nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]


def shown_value(given: object) -> str:
    """Return a value as it stands in the file, shortened."""
    if isinstance(given, int) and given.bit_length() > WIDEST:
        return f"an integer of {given.bit_length():,} bits"
    text = repr(given)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."

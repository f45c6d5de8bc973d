"""Output to a stream whose encoding lacks a sign that we print: a file in a job with ``LC_ALL=C``, a terminal of Latin-1."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import Final, TextIO

JSON_SCHEMA: Final = 1  # the version of every document of --json, see documents.py

# What we print ourselves. Spinners and bars, which only terminals get, are below.
PLAIN: Final = {
    "✓": "+",
    "✗": "x",
    "±": "+/-",
    "\N{MINUS SIGN}": "-",
    "…": "...",
    "━": "#",
    "─": "-",
    "✅": "+",
    "❌": "x",
    "⚪": "o",
}
BRAILLE: Final = range(0x2800, 0x2900)  # the dots of a spinner


def print_anything(*, as_json: bool) -> None:
    """Makes stdout and stderr take every sign. What their encoding lacks comes in plain signs, or as ``\\u00fc``: names stay
    readable, and a JSON string that is escaped so is the same string, so with ``as_json`` all on stdout is escaped. A stream
    that whoever started us has closed takes it and keeps nothing.
    """
    sys.stdout, sys.stderr = sys.stdout or _nothing(), sys.stderr or _nothing()
    codecs.register_error("skdeploy-plain", _plain)
    codecs.register_error("skdeploy-escaped", _escaped)
    for stream, errors in (
        (sys.stdout, "skdeploy-escaped" if as_json else "skdeploy-plain"),
        (sys.stderr, "skdeploy-plain"),
    ):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _nothing() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _plain(error: UnicodeError) -> tuple[str, int]:
    return _replaced(error, PLAIN)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    return _replaced(error, {})


def _replaced(error: UnicodeError, plain: dict[str, str]) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(
        "." if plain and ord(sign) in BRAILLE else plain.get(sign) or _escape(sign) for sign in lost
    ), error.end


def _escape(sign: str) -> str:
    """As JSON writes it: UTF-16, two escapes for what is above U+FFFF."""
    units = sign.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))

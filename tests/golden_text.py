"""Golden texts, with what differs from run to run and from machine to machine masked."""

from __future__ import annotations

import re
from difflib import unified_diff
from pathlib import Path

DIGEST = re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{12,64}\b")
NUMBER = re.compile(r"(?<![\w.-])[+-]?\d+(?:[.,:-]\d+)*(?:e[+-]?\d+)?(?=x?\b|%|\W|$)")


def masked(text: str) -> str:
    """Return the text with # for each number and digest, which decide how wide a column is: two spaces in a row at most."""
    text = re.sub("  +", "  ", re.sub(" +#", " #", NUMBER.sub("#", DIGEST.sub("#", text))))
    return "".join(f"{line.rstrip()}\n" for line in re.sub("(?m)^ #", "#", text).splitlines())


def check_golden(file: Path, text: str, *, refresh: bool) -> None:
    """Compares; takes over what differs with ``--refresh-goldens``. Review the difference before it is committed."""
    if refresh and not (file.exists() and file.read_text(encoding="utf-8") == text):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    known = file.read_text(encoding="utf-8")
    assert text == known, "\n".join(unified_diff(known.splitlines(), text.splitlines(), "reviewed", "now", lineterm=""))

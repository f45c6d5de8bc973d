"""Lists in messages: the first few, and how many more there are."""

from __future__ import annotations

from collections.abc import Sequence


def some(names: Sequence[str], shown: int = 5) -> str:
    """``a, b and 7 more``."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def some_lines(lines: Sequence[str], shown: int = 5) -> str:
    """The same with a line for each, set in."""
    more = [f"... and {len(lines) - shown} more"] if len(lines) > shown else []
    return "\n".join(f"  {line}" for line in (*lines[:shown], *more))

"""JSON has no NaN and no infinity, but Python and pydantic read them, and numbers too large for a float too."""

from __future__ import annotations

import json
import math
from typing import NoReturn


def require_finite(content: bytes | str) -> None:
    """Raise ValueError, of a JSON text that pydantic has read, if one of its numbers is not finite."""
    json.loads(content, parse_constant=_refused, parse_float=_finite, parse_int=_finite)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refused(text)
    return number


def _refused(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is not a finite number")

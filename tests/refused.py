"""What every refusal of skdeploy has: a kind of error, what happened, and what to do next."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from skdeploy.core.errors import SkdeployError


@contextmanager
def refused(kind: type[SkdeployError], message: str = "", advice: str = "") -> Iterator[None]:
    """The body ends in this error; ``message`` is a pattern, and ``advice`` a text that is in the error's."""
    with pytest.raises(kind) as error:
        yield
    assert re.search(message, str(error.value)), error.value
    assert error.value.advice
    assert advice in error.value.advice

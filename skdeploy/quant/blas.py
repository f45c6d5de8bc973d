"""How many threads numpy's matrix products take."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final

# OpenBLAS as the wheels of numpy carry it, with 64-bit integers and without, and as Debian does.
NAMES: Final = ("scipy_openblas_{}64_", "scipy_openblas_{}", "openblas_{}64_", "openblas_{}")


@contextmanager
def one_thread() -> Iterator[bool]:
    """Let each product take the thread that asks for it and no other, while several threads have products of their own.
    Yield whether numpy's library does so.

    OpenBLAS serves one caller at a time with all its threads, and those wait by spinning: rounding the weights of SKNet-50 took
    100 seconds of two cores so, and 17 with one thread each. Other libraries go on as before: the results are the same.
    """
    calls = _calls()
    if calls is None:
        yield False
        return
    get, use = calls
    before = int(get())
    use(1)
    try:
        yield True
    finally:
        use(before)


def _calls() -> tuple[Any, Any] | None:
    """The functions that get and set the threads, from the library that numpy is linked to."""
    found = find_spec("numpy.linalg._umath_linalg")
    if found is None or found.origin is None:
        return None
    library = ctypes.CDLL(found.origin)  # its symbols include those of the libraries that it is linked to
    for name in NAMES:
        get, use = (getattr(library, name.format(f"{verb}_num_threads"), None) for verb in ("get", "set"))
        if get is not None and use is not None:
            return get, use
    return None

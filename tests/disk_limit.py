"""A disk that is full after so many bytes of one file: what a kernel does for a process, so nothing has to be mounted."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Inside the block, writing a file beyond ``size_bytes`` is an OSError, EFBIG.

    A block and no fixture: the limit holds for the whole process, and pytest itself writes to its output, which may be a file
    that is longer than that, as soon as the body of a test has ended.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

"""How the C library treats memory that is given back."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

TRIM_THRESHOLD: Final = -1  # mallopt(3): M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX
MMAP_THRESHOLD: Final = -3
ARENA_MAX: Final = -8
MOST: Final = 2**27  # bytes that are kept
LARGEST: Final = 2**26  # bytes of one block: the tensors of most batches are smaller, and a whole graph is larger


def keep_freed() -> bool:
    """Let this process keep up to 128 MiB that it frees, in blocks of up to 64 MiB, for its next allocations. Whether the C
    library does so.

    By default glibc gives large blocks back, and the kernel clears each page when the next block of the same size is asked for:
    a network of 100 MB is copied a dozen times in an export, and 2 of 20 seconds went there. All threads share what is kept.
    A block as large as a graph leaves a hole that little fits into: such blocks go back.
    C libraries without ``mallopt`` (musl, macOS) go on as before. It is for processes of ours that end with their job.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(*each) for each in ((ARENA_MAX, 1), (MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, MOST)))


def give_back() -> bool:
    """Give the kernel what this process has freed and kept, before a step that needs other memory. Whether the C library does.

    A trace of SKNet-50 and its simplification leave 0.4 to 0.9 GB so: objects that refer to each other, and pages between those
    that are in use. It takes some tenths of a second, so it is for long steps.
    """
    gc.collect()
    return trim()


def trim() -> bool:
    """The same without the objects that refer to each other: some hundredths of a second."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return malloc_trim is not None and bool(malloc_trim(0))


@contextmanager
def loading(module: str) -> Iterator[None]:
    """Around the first import of a module: its objects stay as long as the process, so the garbage collector passes them over.

    It spares a fifth of the import of torch, and 0.07 seconds of each whole round afterwards. It is for processes of ours.
    """
    if module in sys.modules:  # what has since become garbage must not be kept
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

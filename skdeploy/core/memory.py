"""What the C library does with memory that is given back."""

from __future__ import annotations

import ctypes
from typing import Final

TRIM_THRESHOLD: Final = -1  # mallopt(3): M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
MMAP_THRESHOLD: Final = -3
MOST: Final = 2**27  # bytes


def keep_freed() -> bool:
    """Let this process keep blocks of up to 128 MiB that it frees for its next allocations. Whether the C library does so.

    By default glibc gives large blocks back, and the kernel clears each page when the next block of the same size is asked for:
    a network of 100 MB is copied a dozen times in an export, and 2 of 20 seconds went there. C libraries without ``mallopt``
    (musl, macOS) go on as before. For processes of ours that end with their job: it changes the whole process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(MMAP_THRESHOLD, MOST) and mallopt(TRIM_THRESHOLD, MOST))

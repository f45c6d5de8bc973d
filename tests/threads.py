"""Torch on one thread: for networks so small that waking threads takes longer than the work, and sums of the same order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def single() -> Iterator[None]:
    """Until the end, torch has one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

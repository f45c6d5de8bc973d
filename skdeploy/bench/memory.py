"""A batch that this machine has no memory for: refused with figures, where Linux would kill the process without a word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from skdeploy.backends.base import Array
from skdeploy.core.errors import ExportError, UsageError
from skdeploy.core.spec import ModelSpec, Precision
from skdeploy.devices import jetson

# Inputs below this share of what is free are not looked at: a network's largest maps are some tens of times its images.
LITTLE: Final = 0.01


def require_memory(graph: Path, shown: str, feeds: Mapping[str, Array], spec: ModelSpec, batch: int) -> None:
    """Raises UsageError if weights and the largest layer's maps alone, in FP32, are more than is free."""
    free = jetson.available_bytes()
    if sum(array.nbytes for array in feeds.values()) < LITTLE * free:
        return
    from skdeploy.backends.onnxruntime import load_graph
    from skdeploy.planning.layers import ONNXRUNTIME, fuse
    from skdeploy.planning.plain import read_plain
    from skdeploy.planning.roofline import Types, least_memory_bytes

    try:
        plain = read_plain(load_graph(graph), graph, batch, spec.one_size)
    except ExportError:  # a shape that only running tells: then that is how it is found out
        return
    needed = least_memory_bytes(fuse(plain.model, ONNXRUNTIME), Types(Precision.FP32))
    if needed > free:
        raise UsageError(
            f"a batch of {batch} of {shown} needs at least {needed / 1000000000.0:.1f} GB of memory, but "
            f"{free / 1000000000.0:.1f} GB are free",
            advice="give a smaller --batch",
        )

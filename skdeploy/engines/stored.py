"""Which weights a plan stores as INT8: those of the graph, looked for byte by byte in the plan itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from skdeploy.engines.proof import PrecisionProof, StoredWeights, graph_weights, read_graph

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

FEWEST: Final = 32  # integers in a weight that is looked for


def with_stored_weights(proof: PrecisionProof, onnx_path: Path, plan: memoryview | bytes) -> PrecisionProof:
    """The proof of a plan of the graph in ``onnx_path``, with what the plan's bytes say."""
    return proof.model_copy(update={"stored": stored_weights(read_graph(onnx_path), plan)})


def stored_weights(graph: ir.Model, plan: memoryview | bytes) -> StoredWeights | None:
    """How many of the INT8 weights beside wider arithmetic stand in ``plan`` as they are; None where there are none.

    A plan has no public format. But a compiler that keeps such a weight keeps its integers, in the graph's order or with the
    channels last, and no other bytes look like them: a weight of 32 integers stands in a plan of 100 MB by chance once in 10^69
    times. A weight that is not found may be stored in another order, so that proves nothing. Of shorter ones and of those with
    one value alone nothing can be said: they are not counted.
    """
    weights = [array for array in graph_weights(graph) if array.size >= FEWEST and np.ptp(array)]
    if not weights:
        return None
    content = bytes(plan)
    found = [array for array in weights if any(layout in content for layout in _layouts(array))]
    return StoredWeights(
        weights=len(weights),
        weight_bytes=sum(array.nbytes for array in weights),
        found=len(found),
        found_bytes=sum(array.nbytes for array in found),
    )


def _layouts(array: NDArray[Any]) -> Iterator[bytes]:
    """As the graph has it, with each of the first two axes, which are channels, last, and with the two swapped."""
    swapped = array.swapaxes(0, 1)
    for each in (np.moveaxis(array, 1, -1), array, np.moveaxis(array, 0, -1), swapped, np.moveaxis(swapped, 1, -1)):
        yield np.ascontiguousarray(each).tobytes()

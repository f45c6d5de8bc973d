"""Shapes that a graph computes though they are constant, or follow its batch: folded until none is left."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Final

import onnx_ir as ir
from onnx import ModelProto
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants

from skdeploy.core.errors import ExportError
from skdeploy.ir.identities import FoldKnownSizes
from skdeploy.ir.large import through_proto
from skdeploy.ir.onnx_file import inferred
from skdeploy.ir.reshapes import FoldReshapes
from skdeploy.passes.keep_batch import KeepBatch, takes_any

FOLDING_ROUNDS: Final = 8  # two or three are needed; this only makes it end
SMALL: Final = 1024  # elements of a shape, a list of pads and the like


def folded(model: ir.Model, shown: Path | str, keep_batch: KeepBatch | None = None) -> ir.Model:
    """Without the shapes that TorchScript computes, and chooses by, though they are constant; with the shapes of all values.

    Each fold lets more shapes be inferred, which lets more be folded, until nothing is left to fold. ``shown`` is what errors
    call the graph.
    """
    for _ in range(FOLDING_ROUNDS):
        model = _with_shapes(model, shown)
        FoldKnownSizes()(model)
        named = keep_batch is not None and keep_batch(model).modified
        sized = FoldReshapes()(model).modified
        if not fold_constants(model, should_fold=_is_small_fill).modified and not named and not sized:
            break
    model = _with_shapes(model, shown)
    RemoveUnusedNodesPass()(model)
    return model


def _is_small_fill(node: ir.Node) -> bool | None:
    """Pads are computed from filled tensors, which onnxscript leaves by default; None is that default."""
    shape = node.outputs[0].shape if node.op_type == "ConstantOfShape" else None
    sizes = [size for size in shape if isinstance(size, int)] if shape is not None else []
    return True if shape is not None and len(sizes) == len(shape) and prod(sizes) <= SMALL else None


def _with_shapes(model: ir.Model, shown: Path | str) -> ir.Model:
    """With all shapes inferred anew: those in the file name its own dimensions, or are missing."""

    def without_shapes(proto: ModelProto) -> ModelProto:
        del proto.graph.value_info[:]
        for output in proto.graph.output:
            output.type.tensor_type.ClearField("shape")
        return inferred(proto, shown, strict=True)

    try:
        return through_proto(model, without_shapes, shown)
    except ExportError as error:
        squeeze = next((node for node in model.graph if takes_any(node)), None)
        if squeeze is None:
            raise
        raise ExportError(
            f"{error.message.rstrip('.')}. The node {squeeze.name} (Squeeze) names no axes, so it takes away a batch of "
            "one too",
            advice="write flatten(1), or squeeze with the axes, in the network, and export it again",
        ) from error

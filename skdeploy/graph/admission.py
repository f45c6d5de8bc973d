"""What every graph that leaves here must satisfy, so that TensorRT, DLA and runtimes take it as it is."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from skdeploy.errors import PassError

MAX_RANK: Final = 4  # DLA takes no more, and neither do some runtimes
FORBIDDEN_TYPES: Final = frozenset(
    {ir.DataType.DOUBLE, ir.DataType.STRING, ir.DataType.COMPLEX64, ir.DataType.COMPLEX128}
)


def above_max_rank(model: ir.Model) -> list[str]:
    """Nodes with a tensor above rank 4."""
    return [
        node.name or node.op_type
        for node in model.graph
        if any(value.shape is not None and len(value.shape) > MAX_RANK for value in node.outputs)
    ]


def admit(model: ir.Model, *, any_rank: bool = False) -> None:
    """Raises PassError naming the first node with a tensor of unknown type or rank, above rank 4, or of a forbidden type.

    ``any_rank``: a graph of somebody else's making keeps the ranks that it has.
    """
    import onnx

    for node in model.graph:
        for value in node.outputs:
            if value.dtype is None or value.shape is None:
                raise PassError(
                    f"node {node.name}: the type or rank of {value.name} is unknown", advice="please report the model"
                )
            if len(value.shape) > MAX_RANK and not any_rank:
                raise PassError(
                    f"node {node.name}: {value.name} has rank {len(value.shape)}, and {MAX_RANK} is the limit"
                )
            if value.dtype in FORBIDDEN_TYPES:
                raise PassError(f"node {node.name}: {value.name} is {value.dtype.name}, which TensorRT does not take")
    try:
        onnx.checker.check_model(ir.to_proto(model))
    except onnx.checker.ValidationError as error:
        raise PassError(f"the graph is not valid ONNX: {error}", advice="please report the model") from error

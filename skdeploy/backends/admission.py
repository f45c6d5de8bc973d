"""Checks that every exported graph must pass, so that TensorRT, DLA and runtimes take it as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx_ir as ir

from skdeploy.core.errors import PassError

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
    """Raises PassError naming the first node with a tensor of unknown type or rank, above rank 4, or of a forbidden type, or
    the first node, output or constant that nothing uses.

    ``any_rank``: a graph of somebody else's making keeps the ranks that it has.
    """
    for node in model.graph:
        shown = f"node {node.name} ({node.op_type})"
        for value in node.outputs:
            if value.name == "":
                continue  # an optional output that is left out
            if not isinstance(value.type, ir.TensorType | None):
                raise PassError(
                    f"{shown}: {value.name} is a sequence or an optional value, which no TensorRT takes",
                    advice="export the network with tensors only",
                )
            if value.dtype is None or value.shape is None:
                raise PassError(
                    f"{shown}: the type or rank of {value.name} is unknown",
                    advice="export the network with fixed ranks; if it has these, please report the model",
                )
            if len(value.shape) > MAX_RANK and not any_rank:
                raise PassError(f"{shown}: {value.name} has rank {len(value.shape)}, and {MAX_RANK} is the limit")
            if value.dtype in FORBIDDEN_TYPES:
                raise PassError(
                    f"{shown}: {value.name} is {value.dtype.name}, which TensorRT does not take",
                    advice="export the network with float32 numbers",
                )
    _require_used(model)


def admit_file(path: Path) -> None:
    """Raises PassError, naming node and operator, unless the bytes at ``path`` are valid ONNX, in types and shapes too, that
    ONNX Runtime loads, with every BF16 tensor rounded by skdeploy.
    """
    import onnx

    from skdeploy.backends.culprit import about
    from skdeploy.backends.rounding import RoundNarrow, cpu_lacks
    from skdeploy.core.packages import require

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise PassError(
            f"the graph is not valid ONNX: {about(str(error), onnx.load(path, load_external_data=False))}",
            advice="please report the model",
        ) from error
    ort = require("onnxruntime", extra="cpu")
    model = ir.load(path)
    source: str | bytes = str(path)
    if cpu_lacks(model):  # the rest of the graph, then
        source = ir.to_proto(RoundNarrow()(model).model).SerializeToString()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # nothing is run
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what it says is in the exception
    try:
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise PassError(
            f"ONNX Runtime cannot load the graph: {about(str(error), onnx.load(path, load_external_data=False))}",
            advice="replace this operator in the network and export it again; if it is a common operator, please "
            "report the model",
        ) from error


def _require_used(model: ir.Model) -> None:
    import onnx

    advice = "please report the model"
    outputs = set(model.graph.outputs)
    for graph in (model.graph, *model.graph.subgraphs()):
        for name, value in graph.initializers.items():
            if not _is_read(value) and value not in graph.outputs:
                raise PassError(f"nothing reads the constant {name}", advice=advice)
    for node in model.graph:
        unread = [index for index, value in enumerate(node.outputs) if not _is_read(value) and value not in outputs]
        if len(unread) == len(node.outputs):
            raise PassError(f"nothing reads what node {node.name} ({node.op_type}) makes", advice=advice)
        named = [index for index in unread if node.outputs[index].name]
        if not named:
            continue
        formal = onnx.defs.get_schema(node.op_type, model.graph.opset_imports[""]).outputs
        optional = onnx.defs.OpSchema.FormalParameterOption.Optional
        for index in named:
            if index < len(formal) and formal[index].option == optional:
                raise PassError(
                    f"nothing reads {node.outputs[index].name}, an output that node {node.name} ({node.op_type}) may leave out",
                    advice=advice,
                )


def _is_read(value: ir.Value) -> bool:
    """By a node of a graph: one that was taken out may still hold its inputs, and no file has it."""
    return any(use.node.graph is not None for use in value.uses())

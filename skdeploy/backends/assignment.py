"""Where ONNX Runtime put each node, and whether that is where it was told to run.

A provider that has no kernel for a node leaves it to the CPU, without a word: the result is right, and slow, and a comparison
"of CUDA" is one of the CPU. ONNX Runtime 1.24 and later tell the provider of each node, as the graph is after their basic
optimizations (OrtApi, Session_GetEpGraphAssignmentInfo). An older one can only be told to refuse every node on the CPU.

What may be there: shapes, that is ``Shape``, ``Size`` and what has integers alone, in and out. Kernels take shapes from host
memory, so a provider for GPUs leaves them to the CPU on purpose. Everything else is computation on tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from skdeploy.core.errors import EngineError
from skdeploy.core.listing import some_lines

if TYPE_CHECKING:
    import onnx_ir as ir

RECORD: Final = "session.record_ep_graph_assignment_info"
REFUSE_CPU: Final = "session.disable_cpu_ep_fallback"
READS_SHAPES: Final = ("Shape", "Size")  # of a tensor of any type, without its numbers
LAYERS: Final = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Assigned:
    """A node, and the provider that runs it. ``name`` is empty where the graph gives none."""

    name: str
    op_type: str
    provider: str

    def __str__(self) -> str:
        return f"{self.name or '(no name)'} ({self.op_type})"


def tells_assignment(ort: Any) -> bool:
    """Whether this ONNX Runtime, the module, can say where nodes are."""
    return hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")


def session_config(ort: Any) -> Mapping[str, str]:
    """Session options that record which nodes run on the CPU or, in an ONNX Runtime that cannot, refuse it."""
    return {RECORD: "1"} if tells_assignment(ort) else {REFUSE_CPU: "1"}


def assignment_of(session: Any) -> tuple[Assigned, ...]:
    """Every node of an ``onnxruntime.InferenceSession`` that was opened with ``RECORD``."""
    return tuple(
        Assigned(node.name, node.op_type, subgraph.ep_name)
        for subgraph in session.get_provider_graph_assignment_info()
        for node in subgraph.get_nodes()
    )


def misplaced(nodes: Sequence[Assigned], provider: str, model: ir.Model) -> tuple[Assigned, ...]:
    """The nodes that compute on tensors and are not on ``provider``. ``model`` is the graph that the session was opened with.

    A node that optimizations have made is not in ``model``: it passes only if all nodes of its operator there are of shapes.
    """
    elsewhere = [node for node in nodes if node.provider != provider]
    if not elsewhere:
        return ()
    of_shapes, only_of_shapes = _shape_computations(model)
    known = {node.name for node in model.graph if node.name}
    return tuple(
        node
        for node in elsewhere
        if node.op_type not in READS_SHAPES
        and (node.name not in of_shapes if node.name in known else node.op_type not in only_of_shapes)
    )


def require_assignment(nodes: Sequence[Assigned], provider: str, model: ir.Model, shown: str) -> None:
    """Raises EngineError that names what ``misplaced`` finds, with its share. ``shown`` is what it calls the graph."""
    wrong = misplaced(nodes, provider, model)
    if not wrong:
        return
    places = ", ".join(sorted({node.provider for node in wrong}))
    layers, away = (sum(node.op_type in LAYERS for node in of) for of in (nodes, wrong))
    share = f"{len(wrong)} of {len(nodes)} nodes"
    if layers:
        share += f", {away} of {layers} convolutions and matrix products"
    names = some_lines(list(map(str, wrong)))
    raise EngineError(
        f"{provider} does not run all of {shown}: ONNX Runtime put {share} on {places} without an error:\n{names}",
        advice="a measurement would not be that provider's; use --backend onnxruntime, or build an engine",
    )


def _shape_computations(model: ir.Model) -> tuple[set[str], set[str]]:
    """The names of nodes that compute with shapes, and the operators of which no other nodes are in the graph."""
    typed = _with_types(model)
    names: set[str] = set()
    operators: set[str] = set()
    others: set[str] = set()
    for node in typed.graph:
        if _is_of_shapes(node):
            names.add(node.name or "")
            operators.add(node.op_type)
        else:
            others.add(node.op_type)
    return names - {""}, operators - others


def _is_of_shapes(node: ir.Node) -> bool:
    import onnx_ir as ir

    integers = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
    read = () if node.op_type in READS_SHAPES else [value for value in node.inputs if value is not None]
    return all(value.dtype in integers for value in (*read, *node.outputs))


def _with_types(model: ir.Model) -> ir.Model:
    """The graph with the types of all tensors, inferred where it gives none; those of foreign operators stay unknown."""
    if all(value.dtype is not None for node in model.graph for value in node.outputs):
        return model
    import onnx
    import onnx_ir as ir

    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))

"""How stations write graphs and reports: the file is admitted as the bytes that it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from skdeploy.bundle.station_facts import GraphFacts
from skdeploy.core.architecture import DescribedSpec
from skdeploy.core.spec import ModelSpec, TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir

GraphFactsT = TypeVar("GraphFactsT", bound=GraphFacts)


def has_any_rank(spec: ModelSpec) -> bool:
    """Whether its graphs may have tensors of any rank: those of somebody else's making."""
    return not isinstance(spec.network, DescribedSpec)


def write_graph(model: ir.Model, path: Path, facts: GraphFactsT, *, any_rank: bool, spent: bool = False) -> GraphFactsT:
    """Saves a graph, and admits the file: valid by the schemas, loaded by ONNX Runtime, parsed by TensorRT-RTX.

    Returns ``facts`` with what is known of any graph. ``spent``: nobody reads the graph again, so it loses its weights.
    """
    return admitted(path, save_graph(model, path, facts, any_rank=any_rank, spent=spent))


def save_graph(model: ir.Model, path: Path, facts: GraphFactsT, *, any_rank: bool, spent: bool = False) -> GraphFactsT:
    """The first half of ``write_graph``: what the graph itself tells."""
    from skdeploy.backends.admission import above_max_rank, admit
    from skdeploy.ir.large import save_model
    from skdeploy.ir.qdq import qdq_nodes

    admit(model, any_rank=any_rank)
    told = facts.model_copy(
        update={
            "inputs": tuple(tensor_spec(value) for value in model.graph.inputs),
            "outputs": tuple(tensor_spec(value) for value in model.graph.outputs),
            "nodes": len(model.graph),
            "rank_above_4": tuple(above_max_rank(model)),
            "has_qdq": any(qdq_nodes(model)),
        }
    )
    save_model(model, path, spent=spent)
    return told


def admitted(path: Path, facts: GraphFactsT) -> GraphFactsT:
    """The second half: what those who read the file say."""
    from skdeploy.backends.admission import admit_file
    from skdeploy.engines.parsing import parser_refusal

    admit_file(path)
    return facts.model_copy(update={"parser_refusal": parser_refusal(path) or ""})


def tensor_spec(value: ir.Value) -> TensorSpec:
    """An input or output of an admitted graph."""
    assert value.dtype is not None  # admitted
    assert value.shape is not None  # admitted
    shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    return TensorSpec(name=value.name or "", dtype=str(value.dtype.numpy()), shape=shape)

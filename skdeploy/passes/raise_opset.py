"""A newer opset where a narrow type needs it: the same nodes, whose operators take that type by ONNX's own definitions."""

from __future__ import annotations

from functools import cache
from typing import Final

import onnx
import onnx_ir as ir

from skdeploy.core.errors import PassError
from skdeploy.ir.operator_types import schema_type
from skdeploy.passes.opsets import means_the_same

# The first in which convolutions and pools take BF16. Later ones add it to few operators, such as Einsum (28).
NEWEST: Final = 22


class RaiseOpset(ir.passes.InPlacePass):
    """Gives a graph the least opset, ``NEWEST`` at most, in which each operator that takes ``narrow`` by then takes it.

    Legal where each node is valid and means the same in that opset, which is asked of ONNX's definitions: between opsets 19 and
    22, operators gain types alone. Raises PassError, naming the node, where one does not mean the same.
    """

    def __init__(self, narrow: ir.DataType) -> None:
        super().__init__()
        self.narrow = narrow

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        opset = model.graph.opset_imports[""]
        nodes = list(model.graph.all_nodes())
        firsts = [first_opset_with(node.op_type, self.narrow) for node in nodes]
        wanted = max([opset, *(first for first in firsts if first is not None and first <= NEWEST)])
        if wanted == opset:
            return ir.passes.PassResult(model, modified=False)
        for node in nodes:
            if not means_the_same(ir.to_proto(node), opset, wanted):
                raise PassError(
                    f"{node.name} ({node.op_type}) does not mean the same in opset {wanted}, which {self.narrow.name} needs, "
                    f"as in the graph's {opset}",
                    advice="export with --fp16, or give the network in a newer opset",
                )
        for graph in (model.graph, *model.graph.subgraphs()):
            if "" in graph.opset_imports:
                graph.opset_imports[""] = wanted
        model.ir_version = max(
            model.ir_version or 0, onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", wanted)])
        )
        return ir.passes.PassResult(model, modified=True)


@cache
def first_opset_with(operator: str, narrow: ir.DataType) -> int | None:
    """The first opset in which an operator of ONNX takes this type anywhere; None if no opset that ``onnx`` knows has that."""
    found = [
        schema.since_version
        for schema in onnx.defs.get_all_schemas_with_history()
        if (schema.name, schema.domain) == (operator, "")
        and any(schema_type(narrow) in each.allowed_type_strs for each in schema.type_constraints)
    ]
    return min(found, default=None)

"""Module names in the graph: every node is called ``<module>/<operator>``, and so is its output.

Exporters record modules in their own ways and the simplifier drops metadata but keeps names, so the names carry it. All that
speaks to the user of a part of the network (headroom, --keep-fp32, blame) speaks in the network's module names.
"""

from __future__ import annotations

import ast
from collections import Counter
from typing import Final

import onnx_ir as ir

from skdeploy.ir.constants import names_in

SCOPES: Final = "pkg.torch.onnx.name_scopes"  # written by torch.onnx's torch.export-based exporter
WRAPPER: Final = "network"  # the attribute of trace.py's wrapper: not a module of the user's


class NameByModule(ir.passes.InPlacePass):
    """Renames nodes and their outputs after the modules they come from; inputs, outputs and initializers keep their names.

    Legal always: names carry no meaning in ONNX. They stay unique: repeated operators of a module are numbered, and numbers
    that make a name which an input, a constant or a graph inside a node has are left out.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        kept = {*graph.initializers, *(value.name for value in (*graph.inputs, *graph.outputs))}
        for inner in graph.subgraphs():
            kept |= names_in(inner)
        seen: Counter[str] = Counter()
        for node in graph:
            name = f"{_scope(node)}/{node.op_type}"
            seen[name] += 1
            while _numbered(name, seen[name]) in kept:
                seen[name] += 1
            node.name = _numbered(name, seen[name])
            for index, value in enumerate(node.outputs):
                if (
                    not value.is_graph_output() and value.name != ""
                ):  # the empty name: an optional output that is left out
                    value.name = node.name if index == 0 else f"{node.name}.{index}"
        return ir.passes.PassResult(model, modified=True)


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}_{number}"


def _scope(node: ir.Node) -> str:
    recorded = node.metadata_props.get(SCOPES)
    if recorded is not None:
        scopes = ast.literal_eval(recorded)
        module = scopes[-2] if len(scopes) > 1 else ""
    else:
        module = _from_path((node.name or "").strip("/").split("/")[:-1])
    return module.removeprefix(WRAPPER).removeprefix(".")


def _from_path(parts: list[str]) -> str:
    """TorchScript writes ``stages/stages.0/stages.0.0/reduce``: children of a Sequential repeat their parent's name."""
    joined: list[str] = []
    for part in parts:
        if joined and (part == joined[-1] or part.startswith(f"{joined[-1]}.")):
            joined[-1] = part
        else:
            joined.append(part)
    return ".".join(joined)

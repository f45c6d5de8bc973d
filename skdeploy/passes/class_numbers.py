"""Class numbers among the outputs of a graph: behind an ArgMax, ArgMin or the first place of a TopK."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from skdeploy.ir.deciding import PICKS, Decision, decision_of, integer_outputs

KEEP_ORDER: Final = frozenset({"Softmax", "LogSoftmax"})  # the largest stays the largest


def class_numbers(model: ir.Model) -> tuple[dict[str, int], dict[str, str]]:
    """Of each output of class numbers: how many it picks from; and of some the output with the logits that it picks by."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    widths, scores = dict[str, int](), dict[str, str]()
    for made in integer_outputs(model):
        decision = decision_of(made)
        one_each = made.shape is not None and tuple(made.shape[1:]) in ((), (1,))
        if not isinstance(decision, Decision) or decision.operator not in PICKS or decision.changed or not one_each:
            continue
        source = values.get(decision.tensors[0])
        width = None if source is None or source.shape is None else source.shape[decision.axis]
        if source is None or not isinstance(width, int) or made.dtype is ir.DataType.BOOL:
            continue
        widths[made.name or ""] = width
        beside = [each for each in model.graph.outputs if _same_order(each) & _same_order(source)]
        if beside and decision.operator == "ArgMax":
            scores[made.name or ""] = beside[0].name or ""
    return widths, scores


def _same_order(value: ir.Value) -> set[str]:
    """The names of a tensor and of the one that a softmax made it of."""
    node = value.producer()
    read = node.inputs[0] if node is not None and node.op_type in KEEP_ORDER else None
    return {name for name in (value.name, read.name if read is not None else None) if name}

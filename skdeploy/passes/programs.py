"""Exported programs that need none of torch's decompositions, which trace a program once more: half of the time of an export.

Most of our networks are convolutions, sums, ReLUs and means over the whole image. For these operators the exporter has an ONNX
form as they are, or after one replacement here that torch's own decompositions make too:

* ``relu_`` is ``relu`` where nothing else reads what it overwrites;
* ``adaptive_avg_pool2d`` to one value is the mean over height and width.

A program with any other operator is left to torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch.export import ExportedProgram
    from torch.fx import Node


def spare_decompositions(program: ExportedProgram) -> bool:
    """Whether the exporter takes ``program`` without decomposing it, which it is then told. Nothing is changed otherwise."""
    import torch

    aten = torch.ops.aten
    taken = {
        aten.add.Tensor, aten.conv2d.default, aten.flatten.using_ints, aten.linear.default, aten.max_pool2d.default,
        aten.mean.dim, aten.mul.Tensor, aten.relu.default, aten.sigmoid.default, aten.sub.Tensor,
    }  # fmt: skip
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    overwriting = [node for node in calls if node.target is aten.relu_.default]
    pooling = [node for node in calls if node.target is aten.adaptive_avg_pool2d.default]
    others = [node for node in calls if node.target not in taken and node not in overwriting and node not in pooling]
    if others or not all(map(_overwrites_for_itself, overwriting)) or any(node.args[1] != [1, 1] for node in pooling):
        return False
    for node in overwriting:
        node.target = aten.relu.default
    for node in pooling:
        node.target, node.args = aten.mean.dim, (node.args[0], [-1, -2], True)
    # The exporter asks each program for this, and cannot be told that it need not.
    program.run_decompositions = lambda *_: program
    return True


def fold_sizes(model: ir.Model) -> None:
    """Computes in advance what the exporter leaves to be computed of constants and known sizes.

    For the operators here this is all that its own optimiser finds: it tries some hundred patterns, for a fifth of a trace.
    """
    from onnx_ir.passes.common import (
        DeduplicateInitializersPass,
        LiftConstantsToInitializersPass,
        RemoveUnusedNodesPass,
    )
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import RewriteRuleSet
    from onnxscript.rewriter.rules import common

    fold_constants(model)
    RewriteRuleSet(
        [common.remove_optional_bias_from_conv_rule, common.remove_optional_bias_from_gemm_rule]
    ).apply_to_model(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    RemoveUnusedNodesPass()(model)
    DeduplicateInitializersPass()(model)


def _overwrites_for_itself(node: Node) -> bool:
    """Whether nothing but this node reads its input, which neither the caller gave nor a view of another tensor is."""
    import torch

    before = node.all_input_nodes[0]
    made = before.op == "call_function" and before.target is not torch.ops.aten.flatten.using_ints
    return made and list(before.users) == [node]

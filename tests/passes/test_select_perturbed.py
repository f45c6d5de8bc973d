"""Graphs with one thing changed at random: their selects are rewritten exactly, or left.

The changes know nothing of selects. Most make another function, which may still be a select, as with the branches in another
order; whatever it is, what the search rewrites must not change it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass

from skdeploy.passes.find_blocks import find_blocks
from skdeploy.passes.foreign import read_foreign
from skdeploy.passes.select import BlockWriter
from tests.graphs.float64 import ROUNDING, SHAPE, SideBySide, in_float64, logits
from tests.graphs.foreign import PORTS, export, live
from tests.graphs.gated_blocks import SAME

Generator = np.random.Generator

TRIED = 24  # changes of one graph; about half of them run
OPERATORS = {
    "Softmax", "Concat", "Gather", "Slice", "ReduceSum", "ReduceMean", "Mul", "Sub", "Add", "Div", "Transpose", "Split",
}  # fmt: skip


def perturbed(model: ir.Model, generator: Generator) -> tuple[ir.Model, str]:
    """The graph with another axis, order of operands, or constant in one of its nodes, and which."""
    proto = ir.to_proto(model)
    nodes = [node for node in proto.graph.node if node.op_type in OPERATORS]
    node = nodes[generator.integers(len(nodes))]
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    small = [k for k, name in enumerate(node.input) if name in constants and constants[name].data_type == 7]
    attributes = [a for a in node.attribute if a.name in ("axis", "perm")]
    changes = [*(("attribute", a) for a in attributes), *(("constant", k) for k in small)]
    if len(node.input) > 1 and not small:
        changes.append(("order", None))
        changes.append(("operand", None))
    if not changes:
        return model, ""
    kind, what = changes[generator.integers(len(changes))]
    if kind == "attribute" and what.name == "axis":
        what.i = int(generator.integers(0, 5))
    elif kind == "attribute":
        what.ints[:] = [int(axis) for axis in generator.permutation(len(what.ints))]
    elif kind == "constant":
        tensor = constants[node.input[what]]
        changed = numpy_helper.to_array(tensor) + generator.integers(-1, 3)
        proto.graph.initializer.append(numpy_helper.from_array(changed, f"{tensor.name}_changed"))
        node.input[what] = f"{tensor.name}_changed"
    elif kind == "order":
        node.input[:] = [node.input[k] for k in generator.permutation(len(node.input))]
    else:  # an operand of another node of its kind
        others = [other for other in nodes if other.op_type == node.op_type and other is not node]
        if not others:
            return model, ""
        node.input[generator.integers(len(node.input))] = others[generator.integers(len(others))].input[0]
    del proto.graph.value_info[:]
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto)), f"{kind} of {node.op_type} {node.name}"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    """Blocks of many forms, side by side, in float64."""
    kinds = ("log-softmax", "two sigmoids", "shares of Softplus", "Einsum", "mean over branches", "residual", "groups")
    blocks = [
        *(SAME[kind] for kind in kinds),
        *(PORTS[port]() for port in ("timm", "sliced", "channel-major", "last axis")),
    ]
    file = tmp_path_factory.mktemp("perturbed") / "m.onnx"
    return in_float64(
        read_foreign(export(live(SideBySide(*blocks)), file, "torchscript", 17, shape=(3, *SHAPE), batch=3))
    )


def evaluated(model: ir.Model, inputs: Any) -> Any:
    """The logits; None if the graph does not run, or gives no finite numbers."""
    try:
        with np.errstate(all="ignore"):
            found = ReferenceEvaluator(ir.to_proto(model)).run(None, {"input": inputs})[0]
    except Exception:  # noqa: BLE001  (whatever the evaluator makes of shapes that do not fit)
        return None
    return found if np.isfinite(found).all() else None


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_what_is_rewritten_of_a_perturbed_graph_keeps_its_function(seed: int, network: ir.Model) -> None:
    generator = np.random.default_rng(seed)
    inputs = np.random.default_rng(5).standard_normal((3, 3, *SHAPE))
    whole = len(find_blocks(network.clone()).blocks)
    counts = []
    for _ in range(TRIED):
        model, change = perturbed(network.clone(), generator)
        before = evaluated(model, inputs) if change else None
        if before is None:
            continue
        blocks = find_blocks(model).blocks
        writer = BlockWriter(model.graph)
        for block in blocks:
            writer.rewrite(block)
        RemoveUnusedNodesPass()(model)
        error = float(np.abs(logits(model, inputs) - before).max() / np.abs(before).max())
        assert error < ROUNDING, f"{change}: {error:.1e}"
        counts.append(len(blocks))
    assert len(counts) > TRIED // 4  # enough of them ran
    assert min(counts) < whole  # some were refused
    assert max(counts) == whole  # and some kept a select

"""Graphs of any opset, brought to one that the compilers and runtimes we export for take."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx
import onnx.inliner
import onnx.version_converter
import onnx_ir as ir
from onnx import AttributeProto, ModelProto, NodeProto
from onnx.defs import OpSchema

from skdeploy.core.errors import ExportError, IntegrityError, PassError
from skdeploy.ir.large import through_proto
from skdeploy.ir.onnx_file import first_line, inferred, inside
from skdeploy.passes.trace_options import MAX_OPSET, MIN_OPSET

OLDEST_OPSET: Final = 7  # what onnx.version_converter takes
NEWEST_OPSET: Final = onnx.defs.onnx_opset_version()
IR_VERSION: Final = 9  # what goes with opsets 19 and 20


def require_known_opset(opset: int, path: Path) -> None:
    """Raises ExportError for an opset that the installed onnx does not read, or cannot convert."""
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ExportError(
            f"{path} has opset {opset}; skdeploy reads {OLDEST_OPSET} to {NEWEST_OPSET}, with onnx {onnx.__version__}",
            advice=f"export it again with opset {MAX_OPSET}",
        )


def with_known_opset(model: ir.Model, path: Path, opset: int) -> ir.Model:
    """The same graph with opset 19 or 20, where ONNX has a way to it.

    Older graphs are upgraded to 19 by ONNX's own converter. Newer ones become 20, the last that TensorRT 10.3 parses, if every
    node means the same there: between the two opsets its operator gained types, or attributes and inputs that the node does not
    use. Operators that are newer than 20 but that ONNX defines by others (Swish, RMSNormalization) are replaced by these. A
    graph with another one keeps its opset: ONNX Runtime takes it, and of TensorRT a newer release may.

    Raises PassError if ONNX's converter fails.
    """
    if opset < MIN_OPSET:
        return _upgraded(model, path, opset)
    if opset <= MAX_OPSET:
        model.ir_version = IR_VERSION
        return model
    known = through_proto(model, lambda proto: _lowered(proto, opset, path), path)
    if known.graph.opset_imports[""] == MAX_OPSET:
        return known
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    return model


def _lowered(proto: ModelProto, opset: int, path: Path) -> ModelProto:
    """The graph of opset ``opset`` in MAX_OPSET, or as it was where it cannot be."""
    lowered = ModelProto()
    lowered.CopyFrom(_without_new_functions(proto, opset))
    if not all(means_the_same(node, opset, MAX_OPSET) for node in inside(lowered.graph, NodeProto)):
        return proto
    lowered.opset_import[0].version = MAX_OPSET
    lowered.ir_version = IR_VERSION
    try:
        inferred(lowered, path, strict=True)  # types, too: the older operators take fewer
    except ExportError:
        return proto
    return lowered


def means_the_same(node: NodeProto, newer: int, older: int) -> bool:
    """Whether a node of opset ``newer`` is valid and means the same in ``older``, by the two definitions of its operator.

    The same question may be asked upwards: ``newer`` is the opset that the node has.
    """
    new = onnx.defs.get_schema(node.op_type, newer)
    try:
        old = onnx.defs.get_schema(node.op_type, older)
    except onnx.defs.SchemaError:
        return False
    if old.since_version == new.since_version:
        return True
    given = {attribute.name for attribute in node.attribute}
    shared = [name for name in old.attributes if name in new.attributes and name not in given]
    return (
        not old.deprecated
        and not new.deprecated  # GroupNormalization 18, whose scales 21 reads in another way
        and len(node.input) <= old.max_input
        and len(node.output) <= old.max_output
        and given <= set(old.attributes)
        and all(_default(old.attributes[name]) == _default(new.attributes[name]) for name in shared)
    )


def _default(attribute: OpSchema.Attribute) -> AttributeProto:
    value: AttributeProto = attribute.default_value
    value.ClearField("doc_string")
    return value


def _without_new_functions(proto: ModelProto, opset: int) -> ModelProto:
    """Without the operators that are newer than MAX_OPSET, if ONNX defines them by others: the inliner leaves the rest."""
    names = set()
    for node in inside(proto.graph, NodeProto):
        schema = onnx.defs.get_schema(node.op_type, opset)
        if _is_new(node):
            names.add(("", node.op_type))
            given = {attribute.name for attribute in node.attribute}
            defaults = {name: attribute.default_value for name, attribute in schema.attributes.items()}
            # onnx's inliner leaves out what a definition takes from an attribute that the node leaves at its default.
            node.attribute.extend(each for name, each in defaults.items() if name not in given and each.type)
    if not names:
        return proto
    return onnx.inliner.inline_selected_functions(proto, sorted(names), inline_schema_functions=True)


def _is_new(node: NodeProto) -> bool:
    try:
        onnx.defs.get_schema(node.op_type, MAX_OPSET)
    except onnx.defs.SchemaError:
        return True
    return False


def _upgraded(model: ir.Model, path: Path, opset: int) -> ir.Model:
    def upgraded(proto: ModelProto) -> ModelProto:
        after = onnx.version_converter.convert_version(proto, MIN_OPSET)
        after.ir_version = IR_VERSION
        return after

    try:
        return through_proto(model, upgraded, path)
    except IntegrityError:
        raise
    except Exception as error:  # the converter raises RuntimeError and what its C++ has
        raise PassError(
            f"{path} cannot be upgraded from opset {opset} to {MIN_OPSET}: {first_line(error)}",
            advice=f"export it again with opset {MIN_OPSET} or {MAX_OPSET}",
        ) from error

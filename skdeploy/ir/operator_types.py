"""Types in an operator's schema: which inputs and outputs go together, and which of them may be FP16 or BF16."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from skdeploy.core.errors import PassError
from skdeploy.ir.nodes import FLOAT16, FLOAT32

if TYPE_CHECKING:
    from onnx.defs import OpSchema

# Their one attribute says the type of what they make, and any runtime has them for FP16.
CASTS: Final = {"Cast": "to", "ConstantOfShape": "value"}
# Cast; EyeLike, Random*, Bernoulli, SequenceEmpty; windows; DequantizeLinear.
TYPE_ATTRIBUTES: Final = ("to", "dtype", "output_datatype", "output_dtype")
# They compare FP16 numbers with the constant, or clamp them by it: infinity does what any number beyond FP16's range does.
BOUNDED: Final = frozenset({"Clip", "Max", "Min", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"})


@dataclass(frozen=True)
class OperatorTypes:
    """The type of each input and output of a node: a variable of the schema, as ``T``, or a fixed one, as ``tensor(float)``.

    ``half`` has the variables that may be FP16, or another narrow type that was asked about. An output whose variable no input
    has is ``free``: an attribute says its type.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    half: frozenset[str]

    def is_free(self, output: int) -> bool:
        return self.outputs[output] not in self.inputs


def types_of(node: ir.Node, opset: int, narrow: ir.DataType = FLOAT16) -> OperatorTypes:
    """The types that ``node`` may have in ONNX's ``opset``, and where it may be ``narrow``.

    Raises PassError for an operator that this opset does not have.
    """
    if node.domain not in ("", "ai.onnx"):
        raise PassError(
            f"the node {node.name} is {node.domain}.{node.op_type}, an operator that is not ONNX's own",
            advice="export the network without custom operators",
        )
    present = tuple(value is not None for value in node.inputs)
    return _types(node.op_type, opset, present, len(node.outputs), schema_type(narrow))


@cache
def _types(operator: str, opset: int, present: tuple[bool, ...], outputs: int, narrow: str) -> OperatorTypes:
    import onnx

    try:
        schema = onnx.defs.get_schema(operator, opset)
    except onnx.defs.SchemaError as error:
        raise PassError(
            f"{operator} is not an operator of opset {opset}", advice="export the network with another opset"
        ) from error
    half = {entry.type_param_str for entry in schema.type_constraints if narrow in entry.allowed_type_strs}
    given = [_type(schema.inputs, index) if there else "" for index, there in enumerate(present)]
    return OperatorTypes(tuple(given), tuple(_type(schema.outputs, index) for index in range(outputs)), frozenset(half))


def schema_type(dtype: ir.DataType) -> str:
    """A tensor of this type as schemas write it, such as ``tensor(float16)``."""
    return f"tensor({dtype.name.lower()})"


def _type(parameters: Sequence[OpSchema.FormalParameter], index: int) -> str:
    """Of the last parameter there may be any number."""
    return parameters[min(index, len(parameters) - 1)].type_str


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs inside a node: the branches of an If, the body of a Loop or Scan."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def is_tensor(value: ir.Value) -> bool:
    """Whether it is one, and not a sequence or an optional, or of an unknown type."""
    return isinstance(value.type, ir.TensorType)


def is_single(value: ir.Value | None) -> bool:
    """Whether it is an FP32 tensor."""
    return value is not None and is_tensor(value) and value.dtype == FLOAT32


def retype_attributes(node: ir.Node, before: ir.DataType, after: ir.DataType) -> bool:
    """Where an attribute says that what ``node`` makes is ``before``, it says ``after`` from now on. False if none does."""
    kinds = [node.attributes[name] for name in TYPE_ATTRIBUTES if name in node.attributes]
    found = [kind.name for kind in kinds if kind.type == ir.AttributeType.INT and kind.as_int() == before]
    node.attributes.update((name, ir.AttrInt64(name, after)) for name in found)
    if node.op_type != "ConstantOfShape":
        return bool(found)
    value = node.attributes.get("value")
    array = np.zeros(1, np.float32) if value is None else value.as_tensor().numpy()
    if array.dtype != before.numpy():
        return bool(found)
    with np.errstate(over="ignore"):
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array.astype(after.numpy())))
    return True

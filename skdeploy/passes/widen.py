"""Files in FP16 or BF16, read as the FP32 network that has their numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from skdeploy.core.errors import ExportError
from skdeploy.ir.large import is_outside
from skdeploy.ir.onnx_file import inside

NARROW: Final[dict[int, str]] = {TensorProto.FLOAT16: "FP16", TensorProto.BFLOAT16: "BF16"}
# Attributes that name the type of an output: of Cast, of random numbers, of DequantizeLinear from opset 23 on.
OF_TYPE: Final = frozenset({"to", "dtype", "output_dtype"})


def widen(proto: ModelProto, path: Path) -> str:
    """Makes every FP16 and BF16 tensor of a file FP32, and returns the name of its narrow type; empty for a file without one.

    FP32 holds each of their numbers, so no weight and no scale changes. What the file would round between its nodes is not
    rounded: it is the network that was made narrow, and ``--fp16`` makes it so again, with what must not be narrow in FP32.

    Raises ExportError for narrow weights that are too large to be read at once.
    """
    found: set[int] = set()
    for tensor in inside(proto, TensorProto):
        if tensor.data_type in NARROW:
            found.add(tensor.data_type)
            if is_outside(tensor):
                raise ExportError(
                    f"{path}: the weights {tensor.name} are {NARROW[tensor.data_type]}, in a file of more than 2 GB",
                    advice="export the network in float32, and let --fp16 make it narrow",
                )
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in inside(proto, ValueInfoProto):
        if value.type.tensor_type.elem_type in NARROW:
            found.add(value.type.tensor_type.elem_type)
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in inside(proto, NodeProto):
        for attribute in node.attribute:
            named = attribute.type == AttributeProto.INT and attribute.name in OF_TYPE
            if named and attribute.i in NARROW:
                found.add(attribute.i)
                attribute.i = TensorProto.FLOAT
    return " and ".join(NARROW[kind] for kind in sorted(found))

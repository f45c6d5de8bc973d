"""Whether the numbers in an ONNX file are weights that can be rounded: finite, and not quantized already."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from skdeploy.core.errors import ExportError, IntegrityError
from skdeploy.ir.large import is_outside, outside
from skdeploy.ir.onnx_file import inside, shown_name, shown_node

FLOATS: Final = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})
# Beside QuantizeLinear and DequantizeLinear, which every runtime takes, TensorRT too.
INTEGER_KERNELS: Final = frozenset({
    "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
})  # fmt: skip
# ONNX Runtime's own: QLinearAdd, QLinearConcat, QGemm and their like.
MICROSOFT: Final = ("com.microsoft", ("QLinear", "QGemm", "DynamicQuantize"))
INTEGERS_AS_PAIRS: Final = (
    "write QuantizeLinear/DequantizeLinear pairs: quantize_static(..., quant_format=QuantFormat.QDQ, "
    'extra_options={"ActivationSymmetric": True}) of ONNX Runtime; or give the floating point network and let skdeploy '
    "quantize it: --int8 --calib"
)
# What multiplies or shifts by its constants. Elsewhere an infinity may be meant: bounds of Clip, masks that Add or Where take.
WEIGHTED: Final = frozenset({
    "Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "PRelu", "BatchNormalization",
    "InstanceNormalization", "LayerNormalization", "GroupNormalization",
})  # fmt: skip
VIEWS: Final = frozenset({
    "Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Split", "Slice", "Gather",
})  # fmt: skip


def require_no_integer_kernels(proto: ModelProto, path: Path) -> None:
    """Raises ExportError naming the first node of a graph that computes with integers, other than by Q/DQ."""
    for node in inside(proto, NodeProto):
        domain, names = MICROSOFT
        if node.op_type in INTEGER_KERNELS or (node.domain == domain and node.op_type.startswith(names)):
            raise ExportError(
                f"{path} is quantized in a form that TensorRT does not take: the node {shown_node(node)} is {node.op_type}",
                advice=INTEGERS_AS_PAIRS,
            )


def require_finite(proto: ModelProto, path: Path) -> None:
    """Raises IntegrityError for a constant with NaN, and for a weight that is infinite, also of those left in other files."""
    readers: defaultdict[str, list[NodeProto]] = defaultdict(list)
    for node in inside(proto, NodeProto):
        for name in node.input:
            readers[name].append(node)
    for name, tensor in _constants(proto):
        if tensor.data_type not in FLOATS:
            continue
        values = outside(tensor, path.parent) if is_outside(tensor) else numpy_helper.to_array(tensor)
        if bool(np.isfinite(values).all()):
            continue
        nan, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        weighted = _weighted_reader(name, readers)
        if not nan and weighted is None:
            continue
        reader = weighted or next(iter(readers[name]), None)
        user = f", which {shown_node(reader)} ({reader.op_type}) reads" if reader is not None else ""
        raise IntegrityError(
            f"{path}: of the {values.size:,} values of {shown_name(name)}{user}, {nan:,} are NaN and {infinite:,} infinite",
            advice="the training diverged, or the file is damaged: export an earlier checkpoint",
        )


def _constants(proto: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    for graph in inside(proto.graph, GraphProto):
        yield from ((tensor.name, tensor) for tensor in graph.initializer)
        yield from ((sparse.values.name, sparse.values) for sparse in graph.sparse_initializer)
        for node in graph.node:
            if node.op_type == "Constant":
                yield from ((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")


def _weighted_reader(name: str, readers: defaultdict[str, list[NodeProto]]) -> NodeProto | None:
    """The first node that takes the constant as a weight, as it is or after views of it."""
    asked, seen = [name], {name}
    while asked:
        for node in readers[asked.pop()]:
            if node.op_type in WEIGHTED:
                return node
            if node.op_type in VIEWS:
                asked += [output for output in node.output if output not in seen]
                seen.update(node.output)
    return None

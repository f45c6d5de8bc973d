"""The identity of a network's graph and of its tensors: which ranges belong to them, however the graph was written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from json import dumps
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from skdeploy.core.errors import CalibrationError
from skdeploy.core.files import digest_json
from skdeploy.core.patterns import module_of
from skdeploy.ir.rows import WEIGHTED
from skdeploy.passes.exact_input import normalised_image

if TYPE_CHECKING:
    import onnx_ir as ir

ONNX_DOMAINS: Final = ("", "ai.onnx")

VIEWS: Final = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
IMAGE: Final = "input"

# ONNX's defaults, which one exporter writes and another leaves out. A kernel's shape is its weight's.
NEUTRAL: Final[Mapping[str, float | str]] = {
    "strides": 1, "dilations": 1, "pads": 0, "group": 1, "auto_pad": "NOTSET", "output_padding": 0,
    "alpha": 1, "beta": 1, "transA": 0, "transB": 0,
}  # fmt: skip
IMPLIED: Final = frozenset({"kernel_shape"})


def range_names(model: ir.Model) -> dict[str, str]:
    """Map each tensor's name in the graph, in its order, to its name in a ranges file.

    It is the same but for those that exporters and options make differently: the normalised image is ``input``, whether or not
    the graph makes it from pixels; what a view (Flatten here, Reshape there) hands a layer is ``<module>/input``.
    """
    image = normalised_image(model.graph).name or ""
    views: dict[str, str] = {}
    for node in model.graph:
        data = node.inputs[0] if node.op_type in WEIGHTED and node.inputs else None
        producer = data.producer() if data is not None else None
        if data is not None and producer is not None and producer.op_type in VIEWS:
            views.setdefault(data.name or "", f"{module_of(node.name)}/{IMAGE}")
    own = [value.name or "" for value in model.graph.inputs]
    own += [value.name or "" for node in model.graph for value in node.outputs]
    names = {name: name for name in own}
    taken = {*names.values(), IMAGE}
    for name, stable in views.items():
        if stable not in taken:
            names[name] = stable
            taken.add(stable)
    if image in names and image != IMAGE:
        names.pop(IMAGE, None)  # the pixels, which the image takes the name of: they are never quantized
        names[image] = IMAGE
    return names


def graph_identity(model: ir.Model) -> str:
    """SHA-256 of what a graph computes with: the weighted nodes' names, operators, attributes and constants.

    Two graphs have one identity if all Conv, ConvTranspose, Gemm and MatMul nodes agree; opset, batch, image size, embedded
    preprocessing and the order in which the file lists its nodes do not matter. Raises CalibrationError if there is no such
    node.
    """
    varying = {value for value in model.graph.inputs if not value.is_initializer()}
    digests: list[tuple[str, str]] = []
    for node in model.graph:
        if any(value in varying for value in node.inputs):
            varying.update(node.outputs)
        if node.op_type in WEIGHTED and node.domain in ONNX_DOMAINS:
            digests.append((node.name or f"unnamed {len(digests)}", _node_digest(node, varying)))
    if not digests:
        raise CalibrationError("the graph has no Conv, Gemm or MatMul: nothing in it can be INT8")
    return digest_json(sorted(digests))


def _node_digest(node: ir.Node, varying: set[ir.Value]) -> str:
    attributes = {
        name: attribute.value
        for name, attribute in sorted(node.attributes.items())
        if name not in IMPLIED and not _is_neutral(name, attribute.value)
    }
    digest = hashlib.sha256(dumps([node.op_type, attributes]).encode())
    for index, value in enumerate(node.inputs):
        if value is not None and value not in varying:
            for array in _constants(value):
                little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
                digest.update(dumps([index, little.dtype.str, little.shape]).encode())
                digest.update(little.data if little.size else b"")
    return digest.hexdigest()


def _is_neutral(name: str, value: object) -> bool:
    neutral = NEUTRAL.get(name)
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return neutral is not None and all(item == neutral for item in values)


def _constants(value: ir.Value) -> Iterator[NDArray[np.generic]]:
    """A constant's array, or those that it is computed from where nobody folded it, such as a weight behind a Transpose."""
    import onnx_ir as ir

    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        yield tensor.numpy()
        return
    producer = value.producer()
    for source in producer.inputs if producer is not None else ():
        if source is not None:
            yield from _constants(source)

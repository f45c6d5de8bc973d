"""Graphs whose weights are more than one protobuf message holds: the largest of them stand beside the message.

``beside`` decides which. What takes a graph as a message gets one of three forms, and a smaller graph is whole in each:

* ``through_proto``: onnx and onnx-simplifier see inputs in place of these weights, and get them back afterwards.
  ``through_file`` is the same by a file.
* ``Portable``: ONNX Runtime gets them as arrays, and copies none.
* ``save_model``: they go to a second file. The first holds its digest, so that one digest stands for both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from skdeploy.core.files import digest_file, side_file
from skdeploy.core.memory import trim
from skdeploy.ir import onnx_file
from skdeploy.ir.onnx_file import graph_of

COPIED: Final = 2**24  # bytes of weights for which ONNX Runtime may get a message: it is copied four times on the way
DIGEST: Final = "skdeploy.weights.sha256"  # the metadata of a graph with a second file: that file's digest
STUB: Final = "weights"  # the file that a Portable names; nobody opens it
# What numpy and ONNX Runtime store alike. Others (packed 4-bit, BF16, FP8) are small or rare, and stay in the message.
SHARED: Final = frozenset({
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32,
    ir.DataType.INT64,
})  # fmt: skip


@dataclass(frozen=True)
class Portable:
    """A graph as ONNX Runtime takes it: a message, and the arrays of the weights that it only names."""

    message: bytes
    weights: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def proto(self) -> ModelProto:
        """The graph again, without the weights beside it."""
        return ModelProto.FromString(self.message)


def beside(graph: ir.Graph, most: int | None = None) -> dict[str, ir.TensorProtocol]:
    """The weights that stand beside the message, by name; none of most graphs.

    With more than ``most`` bytes in all, WHOLE by default, each but the small ones does.
    """
    limit = onnx_file.WHOLE if most is None else min(most, onnx_file.WHOLE)
    sizes = {name: value.const_value.nbytes for name, value in graph.initializers.items() if value.const_value}
    total, chosen = sum(sizes.values()), dict[str, ir.TensorProtocol]()
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        if total <= limit and (sizes[name] <= onnx_file.SMALL or not chosen):
            break
        tensor = graph.initializers[name].const_value
        if tensor is not None and tensor.dtype in SHARED:
            chosen[name] = tensor
            total -= sizes[name]
    return chosen


def through_proto(
    model: ir.Model, change: Callable[[ModelProto], ModelProto], shown: Path | str = "the graph"
) -> ir.Model:
    """The graph that ``change`` makes of the model as a message. It must keep the names of inputs and weights.

    Raises IntegrityError, naming ``shown``, if there is no graph in the result.
    """
    apart = beside(model.graph)
    return _with_weights(graph_of(change(_message(model, apart)), shown), apart)


def through_file(
    model: ir.Model, change: Callable[[Path], ModelProto], shown: Path | str = "the graph", *, spent: bool = False
) -> ir.Model:
    """The same, where ``change`` reads the message from a file: then nobody else holds a copy while it works.

    ``spent``: nobody reads the given model again, so it loses its weights once they are copied.
    """
    apart = beside(model.graph)
    with tempfile.TemporaryDirectory(prefix="skdeploy-") as folder:
        file = Path(folder) / "graph.onnx"
        _write(_message(model, apart), file, model if spent else None)
        changed = change(file)
    return _with_weights(graph_of(changed, shown), apart)


def _write(message: ModelProto, path: Path, spent: ir.Model | None) -> None:
    """Writes a message, which the caller does not keep. Its bytes take twice its memory while they are made, so a model that
    is spent loses the weights that it was made of before that, and what is freed on the way goes back at once.
    """
    if spent is None:
        path.write_bytes(message.SerializeToString())
        return
    large = bool(beside(spent.graph, COPIED))
    for value in spent.graph.initializers.values():
        value.const_value = None
    if large:
        trim()
    data = message.SerializeToString()
    del message
    if large:
        trim()
    path.write_bytes(data)
    del data
    if large:
        trim()


def _message(model: ir.Model, apart: Mapping[str, ir.TensorProtocol]) -> ModelProto:
    """The model with inputs in place of the weights ``apart``."""
    if not apart:
        return ir.to_proto(model)
    shell = model.clone()
    for name in apart:
        value = shell.graph.initializers.pop(name)
        value.const_value = None
        shell.graph.inputs.append(value)
    _hold(shell.graph)
    return ir.to_proto(shell)


def _with_weights(model: ir.Model, apart: Mapping[str, ir.TensorProtocol]) -> ir.Model:
    """The model with the weights ``apart`` in place of their inputs."""
    for value in [value for value in model.graph.inputs if value.name in apart]:
        model.graph.inputs.remove(value)
        if value.uses():
            value.const_value = apart[value.name or ""]
            model.graph.register_initializer(value)
    return model


def portable(model: ir.Model) -> Portable:
    """The graph as it is now, for ONNX Runtime."""
    apart = beside(model.graph, COPIED)
    if not apart and not any(isinstance(v.const_value, ir.ExternalTensor) for v in model.graph.initializers.values()):
        return Portable(ir.to_proto(model).SerializeToString())
    stubs = model.clone()
    start = 0
    for name, tensor in apart.items():
        # ONNX Runtime takes two weights at one place of a file for one weight.
        stubs.graph.initializers[name].const_value = ir.ExternalTensor(
            STUB, start, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
        )
        start += tensor.nbytes
    _hold(stubs.graph, but=apart)
    return Portable(ir.to_proto(stubs).SerializeToString(), {name: tensor.numpy() for name, tensor in apart.items()})


def portable_proto(proto: ModelProto, folder: Path) -> Portable:
    """The same for a message that ``read_proto`` gave: the weights that it left outside are in files in ``folder``."""
    weights = {tensor.name: outside(tensor, folder) for tensor in proto.graph.initializer if is_outside(tensor)}
    return Portable(proto.SerializeToString(), weights)


def is_outside(tensor: TensorProto) -> bool:
    """Whether its numbers are in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def outside(tensor: TensorProto, folder: Path) -> NDArray[Any]:
    """The numbers of a weight in another file, which are read only where they are looked at."""
    found = ir.from_proto(tensor)
    assert isinstance(found, ir.ExternalTensor)  # it is outside
    found.base_dir = folder
    return found.numpy()


def save_model(model: ir.Model, path: Path, *, spent: bool = False) -> None:
    """Writes one ONNX file, and where its weights do not fit in that, a second beside it: ``side_file``.

    The model's largest weights are then in that file: they leave memory. ``spent``: nobody reads the model again, so it loses
    all of them.
    """
    apart = beside(model.graph)
    side = side_file(path)
    model.metadata_props.pop(DIGEST, None)
    if apart:
        side.unlink(missing_ok=True)  # an earlier one may be open, as a map of memory: it stays whole for its readers
        written = ir.external_data.convert_tensors_to_external(list(apart.values()), path.parent, side.name)
        for name, tensor in zip(apart, written, strict=True):
            model.graph.initializers[name].const_value = tensor
        model.metadata_props[DIGEST] = digest_file(side)
    _hold(model.graph, but=apart)
    _write(ir.to_proto(model), path, model if spent else None)


def _hold(graph: ir.Graph, but: Mapping[str, Any] | None = None) -> None:
    """Takes the weights that are in files into memory, ``but`` some."""
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and name not in (but or {}):
            value.const_value = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name)

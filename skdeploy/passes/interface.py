"""The interface of an ONNX file changed before it is read: outputs chosen, NHWC made NCHW, a fixed batch freed."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from skdeploy.backends.culprit import about, told
from skdeploy.backends.metrics import largest_difference
from skdeploy.backends.onnxruntime import OnnxRuntimeSession
from skdeploy.core.errors import ExportError, UsageError
from skdeploy.ir.large import Portable, portable_proto
from skdeploy.ir.onnx_file import inferred, inside
from skdeploy.passes.baked_batch import baking_node
from skdeploy.passes.read_options import ReadOptions
from skdeploy.passes.same_function import MAX_REL_CHANGE, random_images

TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
BATCH: Final = "batch"
AXES_ARE_AN_INPUT: Final = 13  # the opset from which those of Squeeze are
IMAGE_CHANNELS: Final = (1, 3)
SHOWN_NAMES: Final = 20


def with_asked_interface(
    proto: ModelProto, path: Path, options: ReadOptions, *, has_arrays: bool = False
) -> tuple[str, ...]:
    """Changes the model as ``options`` ask, and returns notes on it.

    NHWC is also seen where the sizes show it, unless ``has_arrays``: a card says what goes in, and that it is not an image.

    Raises UsageError for outputs that do not exist and an input that is not an image; ExportError for a batch that the
    network does not let go.
    """
    notes: list[str] = []
    if options.names:
        notes += _keep_outputs(proto, path, options.names)
    if options.nhwc or (not has_arrays and _is_channels_last(proto)):
        notes += _to_nchw(proto, path)
    if options.free_batch:
        notes += _free_batch(proto, path)
    return tuple(notes)


def _keep_outputs(proto: ModelProto, path: Path, names: tuple[str, ...]) -> list[str]:
    graph = proto.graph
    shown = {value.name: value for value in graph.output}
    made = {name: node for node in graph.node for name in node.output if name}
    missing = [name for name in names if name not in made]
    if missing:
        close = difflib.get_close_matches(missing[0], [*shown, *made], 3)
        raise UsageError(
            f"{path} has no output {missing[0]}; it has {', '.join([*shown][:SHOWN_NAMES])}",
            advice=f"did you mean {' or '.join(close)}?" if close else "give names of outputs, or of tensors inside",
        )
    if any(name not in shown for name in names):
        shown = {value.name: value for value in inferred(proto, path).graph.value_info} | shown
    before = len(graph.node)
    kept = [shown.get(name) or ValueInfoProto(name=name) for name in names]
    del graph.output[:]
    graph.output.extend(kept)
    _cut_off(graph, set(names))
    return [f"outputs kept: {', '.join(names)}; nodes cut off: {before - len(graph.node)}"]


def _cut_off(graph: GraphProto, needed: set[str]) -> None:
    """Removes nodes, constants and inputs that the outputs do not need. Nodes are in the order in which they run."""
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= {name for part in inside(node, NodeProto) for name in part.input}
            needed |= {value.name for part in inside(node, GraphProto) for value in part.output}
    for things, names in (
        (graph.node, [bool(needed & set(node.output)) for node in graph.node]),
        (graph.initializer, [tensor.name in needed for tensor in graph.initializer]),
        (graph.input, [value.name in needed for value in graph.input]),
        (graph.value_info, [value.name in needed for value in graph.value_info]),
    ):
        for index in reversed(range(len(names))):
            if not names[index]:
                del things[index]


def _image(proto: ModelProto) -> ValueInfoProto | None:
    """The only input, if it has four dimensions."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    return inputs[0] if len(inputs) == 1 and len(inputs[0].type.tensor_type.shape.dim) == 4 else None


def _is_channels_last(proto: ModelProto) -> bool:
    """Whether the last size is 3, as of RGB, and the second is not 1 or 3; or all that reads the input transposes it."""
    image = _image(proto)
    if image is None:
        return False
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in image.type.tensor_type.shape.dim]
    readers = [node for node in proto.graph.node if image.name in node.input]
    turned = bool(readers) and all(_is_transpose(node, TO_NCHW) for node in readers) and sizes[1] not in IMAGE_CHANNELS
    return (sizes[3] == max(IMAGE_CHANNELS) and sizes[1] not in IMAGE_CHANNELS) or (turned and sizes[3] is not None)


def _is_transpose(node: NodeProto, order: tuple[int, ...]) -> bool:
    return node.op_type == "Transpose" and any(tuple(each.ints) == order for each in node.attribute)


def _to_nchw(proto: ModelProto, path: Path) -> list[str]:
    """Puts a Transpose behind the input, and one before each output of four dimensions: the function stays the same.

    Those of the file that undo them go with ``DropIdentities``.
    """
    image, graph = _image(proto), proto.graph
    if image is None:
        raise UsageError(
            f"{path} does not have one input of four dimensions, so it takes no NHWC images", advice="leave --nhwc out"
        )
    own, names = image.name, _names(graph)
    dims = list(image.type.tensor_type.shape.dim)
    image.name = _free(names, f"{own}_nchw")
    del image.type.tensor_type.shape.dim[:]
    image.type.tensor_type.shape.dim.extend(dims[axis] for axis in TO_NCHW)
    graph.node.insert(0, onnx.helper.make_node("Transpose", [image.name], [own], perm=TO_NHWC))
    turned = []
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred(proto, path).graph.output}
    for output in graph.output:
        if ranks.get(output.name) != 4:
            continue
        cast = _cast_to_bytes(graph, output)
        if cast is not None:  # TensorRT computes with no bytes: they are turned before they are made
            turned_before = _free(names, f"{output.name}_nchw")
            turn = onnx.helper.make_node("Transpose", [cast.input[0]], [turned_before], perm=TO_NCHW)
            cast.input[0] = turned_before
            graph.node.insert(list(graph.node).index(cast), turn)
            output.type.tensor_type.ClearField("shape")
            turned.append(output.name)
            continue
        inner = _free(names, f"{output.name}_nhwc")
        for node in inside(graph, NodeProto):
            for values in (node.input, node.output):
                for index, name in enumerate(values):
                    if name == output.name:
                        values[index] = inner
        graph.node.append(onnx.helper.make_node("Transpose", [inner], [output.name], perm=TO_NCHW))
        output.type.tensor_type.ClearField("shape")
        turned.append(output.name)
    also = f", and its outputs {', '.join(turned)} come so" if turned else ""
    return [f"the input {own} was NHWC; the graph takes NCHW{also}"]


def _cast_to_bytes(graph: GraphProto, output: ValueInfoProto) -> NodeProto | None:
    """The Cast that makes an output of bytes, if nothing else reads that."""
    if output.type.tensor_type.elem_type != TensorProto.UINT8:
        return None
    readers = [node for node in inside(graph, NodeProto) if output.name in node.input]
    makers = [node for node in graph.node if output.name in node.output]
    return makers[0] if not readers and makers and makers[0].op_type == "Cast" else None


def _free_batch(proto: ModelProto, path: Path) -> list[str]:
    """Makes the first axis free, and with it the constant shapes that begin with the batch; a Squeeze without axes leaves it.

    The result has to give for several batches at once what the file gives for each, on random images.
    """
    inputs = [value for value in proto.graph.input if value.name not in {t.name for t in proto.graph.initializer}]
    fixed = {
        value.type.tensor_type.shape.dim[0].dim_value for value in inputs if len(value.type.tensor_type.shape.dim)
    } - {0}
    if len(fixed) != 1:
        raise UsageError(f"{path} does not fix its batch", advice="leave --free-batch out")
    (batch,) = fixed
    before, shapes = portable_proto(proto, path.parent), inferred(proto, path).graph.value_info
    sizes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in shapes}
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        if len(dims):
            dims[0].dim_param = BATCH
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    _free_squeezes(proto, batch, sizes)
    del proto.graph.value_info[:]
    _free_shapes(proto, batch)
    _require_batches_apart(before, portable_proto(proto, path.parent), path)
    return [f"the batch was fixed at {batch} and is free now"]


def _free_shapes(proto: ModelProto, batch: int) -> None:
    """Reshape to [batch, ...] becomes Reshape to [0, ...]: as many as there are. Constants that others share are copied.

    torch sets ``allowzero`` on each, by which 0 would be a size. Where no size is 0 it says nothing, and goes.
    """
    graph, names = proto.graph, _names(proto.graph)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants |= {node.output[0]: each.t for each in node.attribute if each.name == "value"}  # noqa: B035  (one)
    for node in graph.node:
        tensor = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if tensor is None:
            continue
        shape = numpy_helper.to_array(tensor).copy()
        zero_is_a_size = any(each.name == "allowzero" and each.i for each in node.attribute)
        if shape.ndim == 1 and shape.size and shape[0] == batch and not (zero_is_a_size and 0 in shape):
            del node.attribute[:]  # a Reshape has no other
            shape[0] = 0
            node.input[1] = _free(names, f"{node.output[0]}_shape")
            graph.initializer.append(numpy_helper.from_array(shape, node.input[1]))


def _free_squeezes(proto: ModelProto, batch: int, sizes: dict[str, list[int]]) -> None:
    """Names the axes of each Squeeze that takes any, all but the batch; at a batch of one it takes that too."""
    names = _names(proto.graph)
    for node in proto.graph.node:
        shape = sizes.get(node.input[0], []) if node.op_type == "Squeeze" else []
        if len(node.input) > 1 or len(node.attribute) or shape[:1] != [batch]:
            continue
        axes = [axis for axis, size in enumerate(shape) if axis and size == 1]
        if proto.opset_import[0].version < AXES_ARE_AN_INPUT:
            node.attribute.append(onnx.helper.make_attribute("axes", axes))
        else:
            node.input.append(_free(names, f"{node.output[0]}_axes"))
            proto.graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), node.input[1]))


def _require_batches_apart(before: Portable, after: Portable, path: Path) -> None:
    """Two batches at once give what each gives alone: in float32, to what another order of sums makes of it."""
    with OnnxRuntimeSession(before, "cpu", None) as old:
        feeds = [random_images(old.inputs, seed) for seed in (0, 1)]
        apart = [old.run(each) for each in feeds]
    both = {name: np.concatenate([each[name] for each in feeds]) for name in feeds[0]}
    try:
        with OnnxRuntimeSession(after, "cpu", None) as new:
            found = new.run(both)
    except ExportError as error:
        raise _bound(path, about(error.message, after.proto), after.proto) from error
    for name in apart[0]:
        arrays = [each[name] for each in apart]
        one_more = found[name].ndim == arrays[0].ndim + 1  # a Squeeze had taken a batch of one
        expected = np.stack(arrays) if one_more else np.concatenate([np.atleast_1d(array) for array in arrays])
        if largest_difference({name: expected}, found) > MAX_REL_CHANGE:
            raise _bound(path, f"{name} is not for two batches what it is for each", after.proto)


def _bound(path: Path, why: str, proto: ModelProto) -> ExportError:
    baked = baking_node(proto)
    if baked is not None:
        node, shape = baked
        why = f"{told(node)} makes the shape {shape} whatever the batch is"
    return ExportError(
        f"{path} does not let its batch go: {why}",
        advice="export it again with a dynamic batch, or leave --free-batch out",
    )


def _names(graph: GraphProto) -> set[str]:
    tensors = {part.name for part in inside(graph, TensorProto)} | {part.name for part in inside(graph, ValueInfoProto)}
    return tensors | {name for node in inside(graph, NodeProto) for name in (*node.input, *node.output)}


def _free(names: set[str], wanted: str) -> str:
    while wanted in names:
        wanted += "_"
    names.add(wanted)
    return wanted

"""The one place where an ONNX file becomes a graph, and where what onnx, onnx-ir and protobuf raise becomes our errors.

protobuf takes any bytes that have its form, and onnx-ir most of what protobuf takes. So a file is checked before anything
reads it: sizes, names, tensors, operators, then ONNX's own checker. It sees the graph without its weights, which are checked
here: that copies no weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import onnx
import onnx.inliner
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from skdeploy.core.errors import ExportError, IntegrityError
from skdeploy.core.files import open_file, require_plain_name
from skdeploy.ir.group_normalization import NAME as GROUP_NORMALIZATION
from skdeploy.ir.group_normalization import replace_group_normalization

BROKEN: Final = "it is cut off, damaged or another kind of file: export it again"
MAX_BYTES: Final = 2**31 - 1  # protobuf's limit for one message
WHOLE: Final = 2**31 - 2**26  # bytes of weights in one message at most: 64 MiB are left for nodes and names
SMALL: Final = 2**20  # bytes: weights up to here stay in the message, and so do shapes, which decide other shapes
MOST_OPSET: Final = 1000  # far from any that there will be; onnx itself takes no number beyond 32 bits
MAX_VALUES: Final = 2**29  # of one tensor: 2 GiB in FP32; the largest of a batch of 256 in a ResNet is 2**28
MAX_NESTING: Final = 32  # graphs in graphs: If in Loop in Scan is 3
SHOWN_CHARACTERS: Final = 300
# What the three packages raise for a graph that is not valid; none has a base class of its own for all of it.
PROBLEMS: Final = (
    DecodeError, ir.serde.SerdeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError,
    ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, NotImplementedError, MemoryError,
)  # fmt: skip
LEAVES: Final = (TensorProto, ValueInfoProto)  # they have no parts that anybody looks for
PACKED: Final = {"INT4": 2, "UINT4": 2, "FLOAT4E2M1": 2, "INT2": 4, "UINT2": 4}  # numbers in one byte


Part = TypeVar("Part", bound=Message)


class _External(NamedTuple):
    """Where a tensor's bytes are."""

    tensor: TensorProto
    file: Path
    start: int
    size: int


def read_graph(path: Path) -> ir.Model:
    """An ONNX file as a graph; see ``read_proto``. External data stays in its files and is read when asked for."""
    proto, _ = _read(path, whole=False)
    return graph_of(proto, path)


def read_proto(path: Path) -> tuple[ModelProto, tuple[Path, ...]]:
    """A valid ONNX model, with external data and functions inlined, and the files that the data came from.

    External data must be in the folder of ``path``. Weights of more than WHOLE bytes stay there, but for small ones.

    Raises IntegrityError for a file that is broken, misses external data or is not valid ONNX; ExportError for one that is too
    large, or has operators that its opset does not.
    """
    return _read(path, whole=True)


def _read(path: Path, *, whole: bool) -> tuple[ModelProto, tuple[Path, ...]]:
    """``whole``: with all external data that has room in it, not only that of nodes, which the checker wants to see."""
    require_plain_name(path)
    try:
        with open_file(path) as file:
            size = path.stat().st_size
            _require_small_enough(path, size)
            proto = onnx.load(file, format="protobuf", load_external_data=False)
    except OSError as error:
        raise _broken(f"{path} cannot be read as ONNX: {error.strerror}") from error
    except DecodeError as error:
        raise _broken(f"{path} cannot be read as ONNX: {first_line(error)}") from error
    if not proto.graph.node:
        raise _broken(f"{path} holds no nodes")
    _check_text(proto, path, "", 0)
    tensors = list(inside(proto, TensorProto))
    external = [_find(tensor, path) for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL]
    sizes = {id(item.tensor): item.size for item in external}
    files = tuple(sorted({item.file for item in external}))
    for tensor in tensors:
        _check_tensor(tensor, path, sizes.get(id(tensor)))
    _check_types(proto, path)
    _check_operators(proto, path)
    own = {id(tensor) for tensor in proto.graph.initializer}
    largest = WHOLE if size + sum(item.size for item in external) <= WHOLE else SMALL
    for item in external:
        if id(item.tensor) in own and not (whole and item.size <= largest):
            continue
        _require_small_enough(path, size + item.size)
        size += item.size
        _inline(item)
    _check_outputs(proto, path)
    try:
        if any(node.op_type == GROUP_NORMALIZATION for function in proto.functions for node in function.node):
            proto = onnx.inliner.inline_local_functions(proto)
        replace_group_normalization(proto, path)  # the checker takes none of opset 18 to 20
        onnx.checker.check_model(_without_weights(proto))
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
            replace_group_normalization(proto, path)
    except PROBLEMS as error:
        raise _broken(f"{path} is not valid ONNX: {first_line(error)}") from error
    return proto, files


def _require_small_enough(path: Path, size: int) -> None:
    if size > MAX_BYTES:
        raise ExportError(
            f"{path} has {size / 1e9:.1f} GB with the constants of its nodes, but one ONNX file can hold "
            f"{MAX_BYTES / 1e9:.1f} GB",
            advice="export it with its weights as external data, and as initializers of the graph",
        )


def graph_of(proto: ModelProto, shown: Path | str) -> ir.Model:
    """The graph of a model; what is left outside is in the folder of ``shown``, if that is a path.

    Raises IntegrityError, naming ``shown``, if there is no graph in it.
    """
    try:
        model: ir.Model = ir.from_proto(proto)
    except PROBLEMS as error:
        raise _broken(f"{shown} cannot be read as a graph: {first_line(error)}") from error
    if isinstance(shown, Path):
        ir.external_data.set_base_dir(model.graph, shown.parent)
    return model


def inferred(proto: ModelProto, shown: Path | str, *, strict: bool = False) -> ModelProto:
    """The model with the shapes that ONNX infers.

    ``strict``, for graphs that will run: also checks types, that all inference succeeds, and that every tensor fits in memory.
    Raises ExportError for a node whose inputs do not fit it, and for a tensor that is too large.
    """
    try:
        found = onnx.shape_inference.infer_shapes(proto, check_type=strict, strict_mode=strict, data_prop=True)
    except PROBLEMS as error:
        raise ExportError(
            f"{shown}: {first_line(error)}",
            advice="export the network with another opset, or replace this operator in it",
        ) from error
    for value in (*found.graph.input, *found.graph.value_info, *found.graph.output) if strict else ():
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.HasField("dim_value")]
        if prod(sizes) > MAX_VALUES:
            raise ExportError(
                f"{shown}: the tensor {shown_name(value.name)} has {prod(sizes):,} values; skdeploy runs at "
                f"most {MAX_VALUES:,}",
                advice="export it with a free or smaller batch, or a smaller image",
            )
    return found


def first_line(error: BaseException) -> str:
    """Shorten an error of these packages to one line: the first words and the innermost node."""
    innermost = error
    while isinstance(innermost, ir.serde.SerdeError) and innermost.__cause__ is not None:
        innermost = innermost.__cause__
    return _shortened(" ".join(str(innermost).split()) or type(innermost).__name__)


def inside(message: Message, kind: type[Part]) -> Iterator[Part]:
    """All messages of a kind in a model or a part of it, itself included: graphs, nodes, tensors, at any depth."""
    if isinstance(message, kind):
        yield message
    if not isinstance(message, LEAVES):
        for field, value in message.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                for part in (value,) if isinstance(value, Message) else value:
                    yield from inside(part, kind)


def shown_node(node: NodeProto) -> str:
    """Name a node for messages; it may have neither a name nor an output."""
    return shown_name(node.name or next(filter(None, node.output), ""))


def shown_name(name: str) -> str:
    """A name as messages show it."""
    return _shortened(name or "without a name")


def _shortened(words: str) -> str:
    return words if len(words) <= SHOWN_CHARACTERS else f"{words[:SHOWN_CHARACTERS]}..."


def _check_text(message: Message, path: Path, at: str, depth: int) -> None:
    """Every text is UTF-8: protobuf hands out bytes for a text that is not, and whoever reads it fails."""
    for field, value in message.ListFields():
        where = f"{at}.{field.name}" if at else field.name
        if field.type == FieldDescriptor.TYPE_STRING:
            for text in (value,) if isinstance(value, str | bytes) else value:
                if isinstance(text, bytes):
                    raise _broken(f"{path} is damaged: its field {where} is {text[:40]!r}, which is not text")
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            if depth > MAX_NESTING * 3:  # graph, node and attribute make one level
                raise _broken(f"{path}: graphs are nested deeper than {MAX_NESTING}")
            for inner in (value,) if isinstance(value, Message) else value:
                _check_text(inner, path, where, depth + 1)


def _find(tensor: TensorProto, path: Path) -> _External:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    shown = shown_name(tensor.name)
    file = _external_file(entries.get("location", ""), shown, path)
    there = file.stat().st_size
    start = _count(entries, "offset", 0, shown, path)
    size = _count(entries, "length", there - start, shown, path)
    if min(start, size) < 0 or start + size > there:
        raise IntegrityError(
            f"{path}: the weights {shown} are bytes {start} to {start + size} of {file.name}, which has only {there}",
            advice="the file is cut off or belongs to another model",
        )
    return _External(tensor, file, start, size)


def _count(entries: dict[str, str], key: str, default: int, tensor: str, path: Path) -> int:
    text = entries.get(key) or str(default)
    try:
        return int(text)
    except ValueError:
        raise _broken(f"{path}: the {key} of the weights {tensor} is {text[:40]!r}, which is not a number") from None


def _external_file(location: str, tensor: str, path: Path) -> Path:
    shown = f"{path}: the weights {tensor}"
    folder, relative = path.resolve().parent, Path(location)
    try:
        file = (path.parent / relative).resolve(strict=True)
    except FileNotFoundError:
        file = folder / relative
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # a loop of links (RuntimeError up to Python 3.12), a null character
        raise IntegrityError(
            f"{shown} are in {location!r}, which cannot be opened: {first_line(error)}",
            advice="put the weights beside the model",
        ) from error
    leaves = relative.is_absolute() or ".." in relative.parts or "\\" in location or not file.is_relative_to(folder)
    if not location or leaves:
        raise IntegrityError(
            f"{shown} point to {location!r}, which is not inside the folder of the model",
            advice="put the weights beside the model, and export it again if you trust it",
        )
    if not file.is_file():
        raise IntegrityError(
            f"{shown} are in {location}, which does not exist", advice=f"copy {location} to the folder of the model"
        )
    if file == path.resolve():
        raise _broken(f"{shown} are recorded as in the model's own file")
    return file


def _inline(item: _External) -> None:
    with item.file.open("rb") as stream:
        stream.seek(item.start)
        item.tensor.raw_data = stream.read(item.size)
    item.tensor.data_location = TensorProto.DEFAULT
    del item.tensor.external_data[:]


def _check_types(proto: ModelProto, path: Path) -> None:
    for value in inside(proto, ValueInfoProto):
        kind = value.type.tensor_type.elem_type
        if kind not in TensorProto.DataType.values():
            raise _broken(f"{path}: the tensor {shown_name(value.name)} has the type {kind}, which ONNX does not have")


def _check_tensor(tensor: TensorProto, path: Path, external: int | None) -> None:
    """Its type exists, no size is negative, and it holds as many numbers as its sizes say.

    ``external``: how many bytes of another file it is, if it is there.
    """
    shown = f"{path}: the tensor {shown_name(tensor.name)}"
    try:
        kind = TensorProto.DataType.Name(tensor.data_type)
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except PROBLEMS as error:
        raise _broken(f"{shown} has the type {tensor.data_type}, which no tensor can have") from error
    if any(length < 0 for length in tensor.dims):
        raise _broken(f"{shown} has the shape {list(tensor.dims)}")
    count = -(-prod(tensor.dims) // PACKED.get(kind, 1))
    if external is not None or tensor.HasField("raw_data"):
        stored, wanted, unit = len(tensor.raw_data) if external is None else external, count * size, "bytes"
    else:
        stored, wanted, unit = len(getattr(tensor, field)), count * (2 if "COMPLEX" in kind else 1), "numbers"
    if stored != wanted:
        raise _broken(f"{shown} has the shape {list(tensor.dims)}, so it needs {wanted} {unit}, but it holds {stored}")


def _broken(message: str) -> IntegrityError:
    return IntegrityError(message, advice=BROKEN)


def foreign_operator(node: NodeProto, path: Path) -> ExportError:
    """The error for an operator that is not ONNX's own, and that nothing in the file defines."""
    return ExportError(
        f"{path}: the node {shown_node(node)} is {node.domain}.{node.op_type}, an operator that is not ONNX's own",
        advice="export the network without custom operators",
    )


def _check_operators(proto: ModelProto, path: Path) -> None:
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    functions = {function.domain for function in proto.functions}
    opset = max(opsets.get("", 0), opsets.get("ai.onnx", 0))
    if opset > MOST_OPSET:
        raise _broken(f"{path} has the opset {opset}, which ONNX does not have")
    for node in inside(proto, NodeProto):
        if node.domain not in {*opsets, *functions, "", "ai.onnx"}:
            raise foreign_operator(node, path)
        if node.domain in ("", "ai.onnx") and opset:
            try:
                onnx.defs.get_schema(node.op_type, opset)
            except onnx.defs.SchemaError as error:
                raise ExportError(
                    f"{path}: the node {shown_node(node)} is ai.onnx.{node.op_type}, which opset {opset} does not have",
                    advice="export the network again",
                ) from error


def _check_outputs(proto: ModelProto, path: Path) -> None:
    """No two nodes of a graph make one tensor: the checker does not say which do."""
    for graph in inside(proto, GraphProto):
        makers: dict[str, NodeProto] = {}
        for node in graph.node:
            for name in filter(None, node.output):
                if name in makers:
                    other = makers[name]
                    raise IntegrityError(
                        f"{path} is not valid ONNX: the nodes {shown_node(other)} ({other.op_type}) and {shown_node(node)} "
                        f"({node.op_type}) both make {shown_name(name)}",
                        advice="give each tensor its own name, and export it again",
                    )
                makers[name] = node


def _without_weights(proto: ModelProto) -> ModelProto:
    """The model for the checker: initializers of the graph are inputs, which copies none."""
    graph = proto.graph
    shell = ModelProto(
        ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions,
        graph=GraphProto(
            name=graph.name, node=graph.node, input=graph.input, output=graph.output,
            sparse_initializer=graph.sparse_initializer,
        ),
    )  # fmt: skip
    given = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.name not in given:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            shell.graph.input.append(value)
    for value in (*shell.graph.input, *shell.graph.output):
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()  # the checker wants one; runtimes do without
    return shell

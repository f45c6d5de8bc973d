"""The weights in a ``.caffemodel``, without Caffe: the few fields of its ``caffe.proto`` that say what they are.

The file is one NetParameter message. Its layers are read one after the other, each by protobuf, so that no more than one is in
memory beside the tensors, and a file that was cut is known by the layer in which it ends.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from skdeploy.core.errors import WeightsError

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from torch import Tensor

# Field numbers of NetParameter in BVLC's caffe.proto.
NET_NAME: Final = 1
OLD_LAYERS: Final = 2  # V0 and V1, before November 2014
LAYERS: Final = 100
FIRST_FIELDS: Final = range(1, 9)  # what protobuf writes before `layer`: name, inputs, state

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
MAX_VARINT_BYTES: Final = 10  # 64 bits, seven a byte
MAX_LAYERS: Final = 100_000  # as many as read.py allows tensors; SKNet-101 has about 900
MAX_DIMENSIONS: Final = 32  # Caffe's kMaxBlobAxes
MAX_LAYER_BYTES: Final = (1 << 31) - 1  # protobuf's own limit for a message
TYPES: Final = {"string": 9, "message": 11, "bytes": 12, "int32": 5, "int64": 3}  # FieldDescriptorProto.Type

CUT: Final = "copy or download it again"
UPGRADE: Final = "convert it with Caffe's own tool: upgrade_net_proto_binary OLD.caffemodel NEW.caffemodel"


class _CutError(Exception):
    """The bytes end inside a field."""


class _NoMessageError(Exception):
    """The bytes are no protobuf message."""


def is_caffemodel(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a NetParameter with layers, of any age.

    A net's name and inputs may come first; then a layer begins with its name and its type, both of them readable. An ONNX file
    begins with a number, a TensorFlow graph with an unreadable name, and no text has such a byte as the layer's.
    """
    stream = io.BytesIO(head)
    try:
        for number, wire, length in _fields(stream):
            content = head[stream.tell() : stream.tell() + length]
            if number == LAYERS and wire == BYTES:
                return _starts_with_texts(content, (1, 2))
            if number == OLD_LAYERS and wire == BYTES:
                return any(_starts_with_texts(content, (first,)) for first in (2, 3, 4)) or _is_v0_layer(content)
            if number not in FIRST_FIELDS or (number == NET_NAME and not _is_text(content)):
                return False
            stream.seek(length, io.SEEK_CUR)
    except (_CutError, _NoMessageError):
        return False
    return False


def read_caffemodel(path: Path) -> dict[str, Tensor]:
    """Tensors named ``<layer>:<number of the blob>``, float32 or float64, in the blobs' own shapes.

    A blob of old Caffe, with num, channels, height and width, keeps these four dimensions. Raises WeightsError for a file that
    is cut, damaged or of Caffe's old format, and for a blob with other than as many values as its shape says.
    """
    tensors: dict[str, Tensor] = {}
    layers = 0
    try:
        with path.open("rb") as file:
            for number, wire, length in _fields(file):
                if number == OLD_LAYERS and wire == BYTES:
                    raise WeightsError(
                        f"{path} has V1 layers, the format of Caffe before November 2014", advice=UPGRADE
                    )
                if number != LAYERS or wire != BYTES:
                    _skip(file, length, path.stat().st_size)
                    continue
                layers += 1
                if layers > MAX_LAYERS or length > MAX_LAYER_BYTES:
                    raise WeightsError(
                        f"{path} is refused: it has more than {MAX_LAYERS:,} layers, or a layer of more than "
                        f"{MAX_LAYER_BYTES:,} bytes"
                    )
                content = file.read(length)
                if len(content) < length:
                    raise _CutError
                for key, tensor in _blobs(content, layers, path):
                    if key in tensors:
                        raise WeightsError(f"{path} has two layers with weights named {key.rpartition(':')[0]!r}")
                    tensors[key] = tensor
    except _CutError as error:
        raise WeightsError(
            f"{path} is cut off: the caffemodel ends inside {f'layer {layers}' if layers else 'its header'}", advice=CUT
        ) from error
    except _NoMessageError as error:
        raise WeightsError(
            f"{path} is damaged: the data after layer {layers} is not part of a caffemodel", advice=CUT
        ) from error
    except OSError as error:
        raise WeightsError(f"cannot read the weights {path}: {error.strerror}") from error
    if not tensors:
        raise WeightsError(
            f"{path} holds no weights: none of its {layers} layers has any",
            advice="give the .caffemodel that training wrote, not a network definition",
        )
    return tensors


def _blobs(content: bytes, number: int, path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one layer."""
    from google.protobuf.message import DecodeError

    layer: Any = _message_class()()
    try:
        layer.ParseFromString(content)
    except DecodeError as error:
        raise WeightsError(f"{path} is damaged: its layer {number} is not a Caffe layer", advice=CUT) from error
    for index, blob in enumerate(layer.blobs):
        yield f"{layer.name}:{index}", _tensor(blob, f"{path}: blob {index} of the layer {layer.name!r}")


def _tensor(blob: Any, what: str) -> Tensor:
    """As Caffe's Blob::FromProto: doubles if there are any, and the old four dimensions where there is no shape."""
    import numpy as np
    import torch

    old = (blob.num, blob.channels, blob.height, blob.width)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else old if any(old) else ()
    doubles = bool(blob.double_data)
    values = bytearray().join(blob.double_data if doubles else blob.data)  # writable, as torch wants it
    size = 8 if doubles else 4
    if len(shape) > MAX_DIMENSIONS:
        raise WeightsError(f"{what} has {len(shape):,} dimensions; a blob has at most {MAX_DIMENSIONS}", advice=CUT)
    if 0 in shape and max(shape) > MAX_LAYER_BYTES:
        raise WeightsError(f"{what} has the shape {shape}, which is too large for any memory", advice=CUT)
    if any(dim < 0 for dim in shape) or len(values) != size * math.prod(shape):
        raise WeightsError(
            f"{what} has {len(values) / size:,.10g} values, but its shape {shape} needs {math.prod(shape):,}",
            advice="the file is damaged, or has values in a format that only its own Caffe reads: save it as float32",
        )
    return torch.from_numpy(np.frombuffer(values, "<f8" if doubles else "<f4").reshape(shape))


@cache
def _message_class() -> type[Message]:
    """LayerParameter with the fields that are read here; protobuf skips the rest.

    Packed floats look on the wire as ``bytes`` do and are declared so: protobuf would otherwise make a Python list of them.
    """
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass

    file = FileDescriptorProto(name="skdeploy_caffe.proto", package="caffe", syntax="proto3")
    one, many = 1, 3  # FieldDescriptorProto.Label: optional, repeated
    for message, fields in {
        "BlobShape": [("dim", 1, many, "int64")],
        "BlobProto": [
            ("num", 1, one, "int32"),
            ("channels", 2, one, "int32"),
            ("height", 3, one, "int32"),
            ("width", 4, one, "int32"),
            ("data", 5, many, "bytes"),
            ("shape", 7, one, "BlobShape"),
            ("double_data", 8, many, "bytes"),
        ],
        "LayerParameter": [("name", 1, one, "string"), ("blobs", 7, many, "BlobProto")],
    }.items():
        described = file.message_type.add(name=message)
        for name, number, label, kind in fields:
            field: Any = described.field.add(name=name, number=number)
            field.label = label
            field.type = TYPES.get(kind, TYPES["message"])
            if kind not in TYPES:
                field.type_name = f".caffe.{kind}"
    pool = DescriptorPool()  # its own: the process may have Caffe's descriptors too
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("caffe.LayerParameter"))


# ----- the wire format, as far as the outermost message needs it: https://protobuf.dev/programming-guides/encoding


def _fields(file: io.BufferedReader | io.BytesIO) -> Iterator[tuple[int, int, int]]:
    """(field number, wire type, bytes of its content), with ``file`` at the content; the caller goes past it.

    Raises _CutError and _NoMessageError.
    """
    while file.peek(1) if isinstance(file, io.BufferedReader) else file.tell() < len(file.getbuffer()):
        tag = _varint(file)
        number, wire = tag >> 3, tag & 7
        if number == 0 or wire not in (VARINT, FIXED64, BYTES, FIXED32):
            raise _NoMessageError
        if wire == VARINT:
            _varint(file)
        yield number, wire, {VARINT: 0, FIXED64: 8, FIXED32: 4}[wire] if wire != BYTES else _varint(file)


def _varint(file: io.BufferedReader | io.BytesIO) -> int:
    value = 0
    for index in range(MAX_VARINT_BYTES):
        byte = file.read(1)
        if not byte:
            raise _CutError
        value |= (byte[0] & 0x7F) << (7 * index)
        if byte[0] < 0x80:
            return value
    raise _NoMessageError


def _skip(file: io.BufferedReader, length: int, size: int) -> None:
    if file.tell() + length > size:
        raise _CutError
    file.seek(length, io.SEEK_CUR)


def _starts_with_texts(message: bytes, numbers: tuple[int, ...]) -> bool:
    """Whether ``message``, perhaps cut, begins with these fields, each a readable text."""
    stream = io.BytesIO(message)
    fields = _fields(stream)
    for wanted in numbers:
        number, wire, length = next(fields, (0, 0, 0))
        content = stream.read(length)
        if number != wanted or wire != BYTES or not _is_text(content):
            return False
    return True


def _is_v0_layer(message: bytes) -> bool:
    """V0's connection: field 1 is the layer, which begins with its name."""
    stream = io.BytesIO(message)
    number, wire, _ = next(_fields(stream), (0, 0, 0))
    return number == 1 and wire == BYTES and _starts_with_texts(stream.read(), (1,))


def _is_text(content: bytes) -> bool:
    """Names of nets, layers and types: one printable line."""
    return bool(re.fullmatch(rb"[\x20-\x7e\x80-\xff]+", content))

"""Writes a ``.caffemodel`` byte by byte: protobuf's wire format by hand, so that the reader is not tested against itself.

https://protobuf.dev/programming-guides/encoding and the field numbers of BVLC's caffe.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def delimited(field: int, content: bytes | str) -> bytes:
    """Wire type 2: a text, a message or a packed list."""
    encoded = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(encoded)) + encoded


def floats(values: Iterable[float]) -> bytes:
    return b"".join(struct.pack("<f", value) for value in values)


def doubles(values: Iterable[float]) -> bytes:
    return b"".join(struct.pack("<d", value) for value in values)


def blob(array: Array, *, shape: tuple[int, ...] | None = None) -> bytes:
    """BlobProto: packed float data, then the shape, as a whole message; ``shape`` tells another one than the array's."""
    dims = b"".join(map(varint, array.shape if shape is None else shape))
    return delimited(5, floats(array.ravel())) + delimited(7, delimited(1, dims))


def old_blob(array: Array) -> bytes:
    """BlobProto before there were shapes: num, channels, height and width, missing ones 1 from the left."""
    dims = (1,) * (4 - array.ndim) + array.shape
    return b"".join(number(field, dim) for field, dim in enumerate(dims, 1)) + delimited(5, floats(array.ravel()))


def double_blob(array: Array) -> bytes:
    return delimited(7, delimited(1, b"".join(map(varint, array.shape)))) + delimited(8, doubles(array.ravel()))


def layer(name: str, kind: str, blobs: Iterable[bytes] = (), bottoms: Iterable[str] = (), top: str = "") -> bytes:
    """LayerParameter, as a field of the net; param (6) and phase (10) are there to be passed over."""
    content = delimited(1, name) + delimited(2, kind)
    content += b"".join(delimited(3, bottom) for bottom in bottoms) + delimited(4, top or name)
    content += delimited(6, varint(3 << 3 | 5) + struct.pack("<f", 1.0))
    content += b"".join(delimited(7, each) for each in blobs)
    return delimited(100, content + number(10, 1))


def net(name: str, layers: Iterable[bytes]) -> bytes:
    return delimited(1, name) + b"".join(layers)

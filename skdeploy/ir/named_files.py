"""Other files that an ONNX file names: a digest of the file alone says nothing of them."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Final

from skdeploy.core.errors import IntegrityError
from skdeploy.core.files import open_file

EXTERNAL: Final = b"location"  # the key of a tensor's external data in onnx.proto
COMPILED: Final = b"EPContext"  # ONNX Runtime's node for an engine in another file


def named_files(path: Path) -> set[str]:
    """The files that hold weights of an ONNX file, as it names them. Most name none: only those with the words are parsed.

    Raises IntegrityError for a file that is broken, or has a node with compiled code; OSError.
    """
    with open_file(path) as file:
        if not path.stat().st_size:
            return set()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(EXTERNAL) < 0 and content.find(COMPILED) < 0:
                return set()
    import onnx
    from google.protobuf.message import DecodeError

    from skdeploy.ir.onnx_file import inside

    try:
        with open_file(path) as file:
            proto = onnx.load(file, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise IntegrityError(f"{path} cannot be read as ONNX", advice="restore it, or export again") from error
    if any(node.op_type.encode() == COMPILED for node in inside(proto, onnx.NodeProto)):
        raise IntegrityError(
            f"{path} has a node {COMPILED.decode()}: it would load compiled code from another file",
            advice="export again into another folder",
        )
    tensors = inside(proto, onnx.TensorProto)
    return {entry.value for tensor in tensors for entry in tensor.external_data if entry.key.encode() == EXTERNAL}

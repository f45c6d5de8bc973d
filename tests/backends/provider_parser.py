"""Gives options to the provider libraries of an ``onnxruntime-gpu`` wheel, which read them before they ask for a GPU.

``python provider_parser.py FOLDER LIBRARY...`` loads the libraries, imports ONNX Runtime from FOLDER, opens a graph with each
(provider, options) of the JSON list on standard input, and writes a JSON list of what was refused, "" for nothing.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

from onnx import TensorProto, helper


def relu() -> bytes:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 8, 8]) for name in ("images", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["images"], ["y"])], "relu", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def refusal(ort: Any, provider: str, options: dict[str, str]) -> str:
    """TensorRT's provider, which reads its options first, then asks for CUDA's: that this one does not load is no refusal."""
    try:
        session = ort.InferenceSession(relu(), providers=[(provider, options)], enable_fallback=0)
    except Exception as error:  # noqa: BLE001  (ONNX Runtime's own exceptions share no base class below Exception)
        ends_well = provider.startswith("Tensorrt") and "CUDA Provider not available" in str(error)
        return "" if ends_well else str(error)
    return "" if provider in session.get_providers() else "its library does not load"


def main() -> None:
    folder, *libraries = sys.argv[1:]
    for library in libraries:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, folder)
    import onnxruntime

    print(json.dumps([refusal(onnxruntime, provider, options) for provider, options in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()

"""Precisions of a plan's layers, from the JSON of TensorRT's engine inspector, 10.x or 11.x.

10.x has "Bindings", a list of names, and one field "Format/Datatype" for each tensor of a layer ("Row major Int8 format",
"Channel major FP16 format where channel % 8 == 0", or "Half" alone); 11.x has "I/O Tensors", a list of objects, and "Format"
and "DataType" apart: NVIDIA, "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from skdeploy.core.errors import EngineError
from skdeploy.engines._api import Compiler, Engine
from skdeploy.engines._log import Log
from skdeploy.engines._made import MEMORY, made
from skdeploy.engines.proof import UNKNOWN, LayerPrecision, PrecisionProof, bits, compare, graph_layers, read_graph

# "[ONNX Layer: a]\x1f[ONNX Layer: b]": each entry is of one node, apart by a unit separator.
_METADATA: Final = re.compile(r"\[ONNX Layer: ([^\x1f\x1e]*?)\](?=$|[\x1e\x1f\s\[])")
_NAMES: Final = ("int8", "fp8", "fp4", "int4", "fp16", "bf16", "fp32", "int32", "int64", "uint8", "bool")
_TYPES: Final = {name: name for name in _NAMES} | {"half": "fp16", "bfloat16": "bf16", "float": "fp32"}
_TYPE: Final = re.compile(rf"\b({'|'.join(_TYPES)})\b", re.IGNORECASE)
# The kernel's name has what it multiplies: sm80_xmma_gemm_f16f16_f16f32_f32_tn_n has inputs and outputs f16, then operands f16.
_KERNEL: Final = re.compile(
    r"_(?:i8|f16|bf16|f32|e4m3)(?:i8|i32|f16|bf16|f32|e4m3)_(i8|f16|bf16|tf32|f32|e4m3)(?:i32|f16|f32)_"
)
_OPERANDS: Final = {"i8": "int8", "f16": "fp16", "bf16": "bf16", "tf32": "fp32", "f32": "fp32", "e4m3": "fp8"}
_DEFAULT_STREAM: Final = 0
_MULTIPLIES: Final = ("conv", "gemm", "matmul", "matrixmultiply", "correlation")


def prove_plan(trt: Compiler, log: Log, engine: Engine, onnx_path: Path) -> PrecisionProof:
    """Ask an engine's inspector in which types it runs the convolutions and matrix products of ``onnx_path``.

    The inspector tells the types of tensors with dynamic shapes only where it is given a context with shapes: the best ones of
    each profile in turn, since each profile has kernels of its own (NVIDIA, IEngineInspector::setExecutionContext).

    Raises EngineError if the inspector tells no layers' types, there is no memory for a context, or the file cannot be read.
    """
    inspector = made(trt, log, "an engine inspector", engine.create_engine_inspector)
    context = made(trt, log, "a context to inspect", engine.create_execution_context, advice=MEMORY)
    inspector.execution_context = context  # which keeps no hold of it: it lives as long as this function
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name).name == "INPUT"]
    informations = []
    for profile in range(engine.num_optimization_profiles):
        if profile:  # a context begins with profile 0
            _must(context.set_optimization_profile_async(profile, _DEFAULT_STREAM), f"profile {profile}", log)
        for name in inputs:
            _, best, _ = engine.get_tensor_profile_shape(name, profile)
            _must(context.set_input_shape(name, best), f"{name} of shape {tuple(best)}", log)
        informations.append(inspector.get_engine_information(trt.LayerInformationFormat.__members__["JSON"]))
    return prove_information(informations[0], onnx_path, *informations[1:])


def _must(accepted: bool, what: str, log: Log) -> None:
    if not accepted:
        raise EngineError(f"the engine refuses {what} of its own profile: {log.reasons()}", advice=MEMORY)


def prove_information(information: str, onnx_path: Path, *of_other_profiles: str) -> PrecisionProof:
    """The same from the inspector's JSON text, one a profile. Of a node that they disagree on, the widest type counts."""
    layers = [layer for text in (information, *of_other_profiles) for layer in _layers(text)]
    records = tuple(map(_record, layers))
    products = tuple(record for record, layer in zip(records, layers, strict=True) if _multiplies(layer))
    graph = graph_layers(read_graph(onnx_path))
    return compare("inspector", graph, records, _found(records, products))


def node_names(metadata: str, name: str) -> tuple[str, ...]:
    """The ONNX nodes of a layer: from its metadata, else from its name, where " + " and " || " join those of fused ones."""
    named = tuple(dict.fromkeys(_METADATA.findall(metadata)))
    return named or tuple(dict.fromkeys(part.strip() for part in re.split(r" \+ | \|\| ", name) if part.strip()))


def _layers(information: str) -> list[Mapping[str, Any]]:
    again = "build the engine again with this TensorRT"
    try:
        top = json.loads(information, strict=False)  # metadata holds control characters as they are
    except ValueError as error:
        raise EngineError(f"the engine inspector's answer is not JSON: {error}", advice=again) from error
    layers = top.get("Layers") if isinstance(top, Mapping) else None
    if not isinstance(layers, list):
        raise EngineError("the engine inspector's answer has no list of layers", advice=again)
    if not all(isinstance(layer, Mapping) for layer in layers):
        raise EngineError(
            "the engine does not show the types of its layers: it was built without detailed profiling",
            advice="build it again with skdeploy, which sets ProfilingVerbosity.DETAILED",
        )
    return layers


def _record(layer: Mapping[str, Any]) -> LayerPrecision:
    name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", UNKNOWN))
    return LayerPrecision(
        name=name, kind=kind, precision=_precision(layer), nodes=node_names(str(layer.get("Metadata", "")), name)
    )


def _precision(layer: Mapping[str, Any]) -> str:
    """The type a layer computes in. A multiplying layer: its kernel's operands, else its weights and activation, else the one
    type that all its inputs have; another layer: its first output's type. Nothing is guessed where they do not tell.
    """
    if not _multiplies(layer):
        outputs = _tensor_types(layer, "Outputs")
        return outputs[0] if outputs else UNKNOWN
    kernel = _KERNEL.search(str(layer.get("TacticName", "")))
    if kernel:
        return _OPERANDS[kernel.group(1)]
    inputs = _tensor_types(layer, "Inputs")
    weights = layer.get("Weights")
    if isinstance(weights, Mapping) and inputs:
        return max(_type(str(weights.get("Type", ""))), inputs[0], key=_known_or_widest)
    return inputs[0] if len(set(inputs)) == 1 else UNKNOWN


def _known_or_widest(precision: str) -> int:
    return bits(precision) or 1 << 10  # an unknown type stays unknown beside a known one


def _multiplies(layer: Mapping[str, Any]) -> bool:
    kind, kernel = str(layer.get("LayerType", "")).lower(), str(layer.get("TacticName", ""))
    return any(word in kind for word in _MULTIPLIES) or bool(_KERNEL.search(kernel))


def _tensor_types(layer: Mapping[str, Any], side: str) -> list[str]:
    tensors = layer.get(side, [])
    return [_type(_datatype(tensor)) for tensor in tensors if isinstance(tensor, Mapping)]


def _datatype(tensor: Mapping[str, Any]) -> str:
    for key in ("DataType", "Datatype", "Format/Datatype", "Format"):
        if key in tensor and _TYPE.search(str(tensor[key])):
            return str(tensor[key])
    return ""


def _type(text: str) -> str:
    named = _TYPE.search(text)
    return _TYPES[named.group(1).lower()] if named else UNKNOWN


def _found(records: tuple[LayerPrecision, ...], products: tuple[LayerPrecision, ...]) -> dict[str, str]:
    """The precision of each node by the layers that multiply for it, the widest of several. A node that only other layers name
    is inside one whose type need not be the product's: unknown.
    """
    by_node: dict[str, list[str]] = {}
    for record in products:
        for node in record.nodes:
            by_node.setdefault(node, []).append(record.precision)
    unknown = {node: UNKNOWN for record in records for node in record.nodes}
    return unknown | {node: max(each, key=_known_or_widest) for node, each in by_node.items()}

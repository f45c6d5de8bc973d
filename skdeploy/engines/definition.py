"""The types of a network definition's layers, before the build: what a compiler was told, proven where there is no GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from skdeploy.engines._api import Layer, Network, dtype_name
from skdeploy.engines.inspect import node_names
from skdeploy.engines.proof import UNKNOWN, LayerPrecision, PrecisionProof, bits, compare, graph_layers

if TYPE_CHECKING:
    import onnx_ir as ir

_PRECISIONS: Final = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "int8": "int8",
    "float8_e4m3fn": "fp8",
    "float4_e2m1fn": "fp4",
    "int4": "int4",
}
_WEIGHTED: Final = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
_SAME_VALUES: Final = ("SHUFFLE", "IDENTITY", "SQUEEZE", "UNSQUEEZE")  # what may stand between a weight and its layer


def prove_definition(network: Network, graph: ir.Model) -> PrecisionProof:
    """Return the types that ``network``, strongly typed, gives the convolutions and matrix products of ``graph``.

    INT8 where the activation and the weight both come from a dequantize layer, which the compiler then fuses; else the wider of
    the inputs' type and the output's. A proof of the definition: a strongly typed plan has its types, and only the inspector,
    on a GPU, says so of the plan itself.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    producers = {layer.get_output(index).name: layer for layer in layers for index in range(layer.num_outputs)}
    records: list[LayerPrecision] = []
    found: dict[str, str] = {}
    for layer in layers:
        weighted = layer.type.name in _WEIGHTED
        precision = _weighted(layer, producers) if weighted else _output(layer)
        nodes = node_names(layer.metadata, layer.name)
        records.append(LayerPrecision(name=layer.name, kind=layer.type.name, precision=precision, nodes=nodes))
        if weighted:
            for node in nodes:
                found[node] = max(found.get(node, precision), precision, key=bits)
    return compare("definition", graph_layers(graph), tuple(records), found)


def _weighted(layer: Layer, producers: dict[str, Layer]) -> str:
    inputs = [tensor for index in range(layer.num_inputs) if (tensor := layer.get_input(index)) is not None]
    quantized = [_quantized(producers.get(tensor.name), producers) for tensor in inputs[:2]]
    if len(quantized) == 2 and all(quantized):  # a weight that is not quantized is inside a convolution, and no input
        return max(map(str, quantized), key=bits)
    types = [_precision(dtype_name(tensor.dtype)) for tensor in (*inputs[:2], layer.get_output(0))]
    return max(types, key=bits)


def _quantized(layer: Layer | None, producers: dict[str, Layer]) -> str | None:
    """The type of the integers that a dequantize layer gives back as real numbers; None if this is none."""
    while layer is not None and layer.type.name in _SAME_VALUES:
        before = layer.get_input(0)
        layer = producers.get(before.name) if before is not None else None
    if layer is None or layer.type.name != "DEQUANTIZE":
        return None
    integers = layer.get_input(0)
    return UNKNOWN if integers is None else _precision(dtype_name(integers.dtype))


def _output(layer: Layer) -> str:
    return _precision(dtype_name(layer.get_output(0).dtype)) if layer.num_outputs else UNKNOWN


def _precision(dtype: str) -> str:
    return _PRECISIONS.get(dtype, dtype)

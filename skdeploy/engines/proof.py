"""The precision that an engine's layers run in, against what its graph says: the record, its shares, and its verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field

from skdeploy.core.errors import EngineError
from skdeploy.core.listing import some, some_lines
from skdeploy.core.spec import Frozen

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

UNKNOWN, MISSING = "unknown", "missing"
_BITS: Final = {"fp32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "int8": 8, "fp4": 4, "int4": 4}
_DTYPES: Final = {
    "FLOAT": "fp32",
    "FLOAT16": "fp16",
    "BFLOAT16": "bf16",
    "INT8": "int8",
    "UINT8": "int8",
    "FLOAT8E4M3FN": "fp8",
}
MAX_NAMED: Final = 10
SOURCES: Final = {
    "definition": "seen in the network definition before the build, not in the plan",
    "inspector": "seen in the plan by the engine inspector",
}


class LayerPrecision(Frozen):
    """One layer of the network definition or of the plan. ``nodes``: the ONNX nodes that it computes, if it says so.

    ``precision`` is fp32, fp16, int8 and so on; another type's own name; ``unknown`` where nothing tells it.
    """

    name: str
    kind: str
    precision: str
    nodes: Annotated[tuple[str, ...], Field(strict=False)] = ()


class WeightedPrecision(Frozen):
    """A convolution or matrix product of the graph. ``wanted`` is the graph's type, ``found`` the engine's: ``unknown`` where
    its layer does not tell, ``missing`` where no layer names it. ``macs`` are for one image, None where the graph leaves
    them open.
    """

    node: str
    module: str
    wanted: str
    found: str
    macs: int | None

    @property
    def wider(self) -> bool:
        """Whether it runs in more bits than the graph says."""
        return self.found in _BITS and self.wanted in _BITS and _BITS[self.found] > _BITS[self.wanted]

    def __str__(self) -> str:
        return f"{self.node} ({self.found}, in the graph {self.wanted})"


class StoredWeights(Frozen):
    """INT8 weights of layers that compute in a wider type: how many there are, and how many the plan holds byte for byte."""

    weights: int
    weight_bytes: int
    found: int
    found_bytes: int

    def text(self) -> str:
        if self.found == self.weights:
            return f"all {self.weights} INT8 weights ({self.weight_bytes:,} bytes) stand in the plan as INT8"
        return (
            f"{self.found} of {self.weights} INT8 weights ({self.found_bytes:,} of {self.weight_bytes:,} bytes) were found in "
            "the plan; the others may have another order or a wider type there"
        )


class PrecisionProof(Frozen):
    """``source`` says what was looked at: the network ``definition`` before the build, or the plan, by its ``inspector``.

    ``stored``: what the plan's own bytes say of INT8 weights; None where no layer has them alone, and in older bundles.
    """

    source: Literal["definition", "inspector"]
    layers: Annotated[tuple[LayerPrecision, ...], Field(strict=False)]
    weighted: Annotated[tuple[WeightedPrecision, ...], Field(strict=False)]
    stored: Annotated[StoredWeights | None, Field(exclude_if=lambda stored: stored is None)] = None

    @property
    def share_of_layers(self) -> dict[str, float]:
        """By precision, 0 to 1, the largest first."""
        return _shares((layer.precision, 1) for layer in self.layers)

    @property
    def share_of_macs(self) -> dict[str, float] | None:
        """By precision, 0 to 1; None where the graph leaves its sizes open."""
        macs = [(layer.found, layer.macs) for layer in self.weighted if layer.macs is not None]
        return _shares(macs) if len(macs) == len(self.weighted) else None

    @property
    def wider(self) -> tuple[WeightedPrecision, ...]:
        """Those that run in a wider type than the graph says."""
        return tuple(layer for layer in self.weighted if layer.wider)

    @property
    def unproven(self) -> tuple[WeightedPrecision, ...]:
        """Those of which the engine does not tell the type, or that it does not name."""
        return tuple(layer for layer in self.weighted if layer.found in (UNKNOWN, MISSING))

    def check(self, path: Path) -> None:
        """Raises EngineError that names the layers which run wider than the graph of ``path`` says. Unproven ones are listed by
        ``text``: they are no evidence of either.
        """
        if self.wider:
            named = some_lines(list(map(str, self.wider)), MAX_NAMED)
            raise EngineError(
                f"{len(self.wider)} of {len(self.weighted)} convolutions and matrix products of {path} run in "
                f"a wider type than the graph has ({SOURCES[self.source]}):\n{named}",
                advice="the compiler has no kernel of that type for them, or the plan belongs to another graph: "
                "build it again, or keep these modules in FP32 with --keep-fp32",
            )

    def text(self) -> str:
        """The proof in one sentence, with what it does not prove."""
        total = len(self.weighted)
        as_asked = sum(not layer.wider for layer in self.weighted) - len(self.unproven)
        parts = [f"{as_asked} of {total} convolutions and matrix products are in the graph's type or a narrower one"]
        if self.wider:
            parts.append(f"{len(self.wider)} are wider: {_names(self.wider)}")
        unknown = tuple(layer for layer in self.unproven if layer.found == UNKNOWN)
        missing = tuple(layer for layer in self.unproven if layer.found == MISSING)
        if unknown:
            parts.append(f"the type of {len(unknown)} is not known: {_names(unknown)}")
        if missing:
            parts.append(f"{len(missing)} were found in no layer: {_names(missing)}")
        shares = self.share_of_macs
        if shares is not None:
            parts.append("MACs " + shares_text(shares))
        seen = f"{'; '.join(parts)} ({SOURCES[self.source]})"
        return seen if self.stored is None else f"{seen}; {self.stored.text()}"


@dataclass(frozen=True)
class GraphLayer:
    """One convolution or matrix product with a constant weight, as the ONNX file has it."""

    node: str
    precision: str
    macs: int | None


def read_graph(onnx_path: Path) -> ir.Model:
    """An ONNX file with the shapes that can be inferred. Raises EngineError if it cannot be read."""
    import onnx_ir as ir
    from onnx_ir.passes.common import ShapeInferencePass

    try:
        model = ir.load(onnx_path)
    except Exception as error:  # protobuf and onnx-ir raise what they like for a file that is no model
        raise EngineError(f"cannot read {onnx_path}: {error}", advice="export it again") from error
    return ShapeInferencePass(check_type=False, strict_mode=False)(model).model  # it copies no weights, as onnx's would


def graph_layers(model: ir.Model) -> tuple[GraphLayer, ...]:
    """Its convolutions and matrix products with constant weights or weights that are dequantized constants.

    INT8 where both the activation and the weight come from a DequantizeLinear of an 8-bit tensor.
    """
    return tuple(
        GraphLayer(node.name or "", _graph_precision(node), _macs(node, weight))
        for node in model.graph
        if (weight := _weight(node)) is not None
    )


def graph_weights(model: ir.Model) -> Iterator[NDArray[np.int8]]:
    """The INT8 constants, each once, of layers that read no INT8 besides: the layers compute in a wider type."""
    seen = set[str]()
    for node in model.graph:
        weight = _weight(node)
        if weight is None or weight.const_value is None or weight.dtype is None or weight.dtype.name != "INT8":
            continue
        if node.inputs[0] is not None and not _dequantized(node.inputs[0]) and weight.name not in seen:
            seen.add(weight.name or "")
            yield weight.const_value.numpy()


def compare(
    source: Literal["definition", "inspector"],
    graph: tuple[GraphLayer, ...],
    layers: tuple[LayerPrecision, ...],
    found: dict[str, str],
) -> PrecisionProof:
    """The proof from the graph's layers, the engine's, and the precision that was ``found`` of each ONNX node by name."""
    from skdeploy.core.patterns import module_of

    return PrecisionProof(
        source=source,
        layers=layers,
        weighted=tuple(
            WeightedPrecision(
                node=layer.node,
                module=module_of(layer.node),
                wanted=layer.precision,
                found=found.get(layer.node, MISSING),
                macs=layer.macs,
            )
            for layer in graph
        ),
    )


def bits(precision: str) -> int:
    """How wide it is; 0 if it is unknown or not a number's type."""
    return _BITS.get(precision, 0)


def shares_text(shares: dict[str, float]) -> str:
    """Like "fp16 97.5 %, fp32 2.5 %"."""
    return ", ".join(f"{name} {share:.1%}".replace("%", " %") for name, share in shares.items())


def _shares(counted: Iterable[tuple[str, int]]) -> dict[str, float]:
    counts = Counter[str]()
    for name, count in counted:
        counts[name] += count
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {name: count / counts.total() for name, count in largest} if counts.total() else {}


def _names(layers: tuple[WeightedPrecision, ...]) -> str:
    return some([layer.node for layer in layers], MAX_NAMED)


def _weight(node: ir.Node) -> ir.Value | None:
    """The constant that the node multiplies by, seen through a DequantizeLinear; None if it is another node."""
    from skdeploy.ir.nodes import maker
    from skdeploy.ir.rows import WEIGHTED

    if node.op_type not in WEIGHTED or len(node.inputs) < 2:
        return None
    value = node.inputs[1]
    while (producer := maker(value)) and producer.op_type in (
        "DequantizeLinear",
        "QuantizeLinear",
        "Cast",
        "Transpose",
    ):
        value = producer.inputs[0]
    return value if value is not None and value.is_initializer() else None


def _graph_precision(node: ir.Node) -> str:
    first, second = node.inputs[0], node.inputs[1]
    assert first is not None  # ONNX asks for both
    assert second is not None
    quantized = [_dequantized(value) for value in (first, second)]
    if all(quantized):
        return quantized[0] or UNKNOWN
    return _DTYPES.get(first.dtype.name, first.dtype.name.lower()) if first.dtype is not None else UNKNOWN


def _dequantized(value: ir.Value) -> str | None:
    from skdeploy.ir.nodes import maker

    producer = value.producer()
    while producer is not None and producer.op_type in ("Transpose", "Reshape", "Flatten"):
        producer = maker(producer.inputs[0])
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    integers = producer.inputs[0]
    return _DTYPES.get(integers.dtype.name) if integers is not None and integers.dtype is not None else UNKNOWN


def _macs(node: ir.Node, weight: ir.Value) -> int | None:
    """Each weight once at each place of one image's output."""
    shape, sizes = node.outputs[0].shape, weight.shape
    if shape is None or sizes is None:
        return None
    places = shape[2:] if node.op_type == "Conv" else shape[1:-1]
    known = [size for size in (*places, *sizes) if isinstance(size, int)]
    return prod(known) if len(known) == len(places) + len(sizes) else None

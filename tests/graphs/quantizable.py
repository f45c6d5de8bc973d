"""Graphs to test the passes of INT8 on: every family and variant, options of users, and graphs made elsewhere."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from skdeploy.core.spec import InputSpec, ModelSpec
from skdeploy.ir.placement import Placement, place
from skdeploy.passes.foreign import read_foreign
from skdeploy.passes.select import RewriteSelect
from skdeploy.passes.simplify import simplify
from skdeploy.passes.trace import trace
from skdeploy.quant.weights import quantize_weight
from skdeploy.zoo.build import build
from skdeploy.zoo.cards import load_card
from tests import threads
from tests.conftest import FAST
from tests.graphs import foreign
from tests.graphs.small_files import model_of
from tests.zoo.tiny_networks import DENSE, K3, K5, STEM, VARIANTS, live, network

Array = NDArray[Any]
SIZE: Final = (19, 22)
SUM_OF_THREE: Final = network("sknet", K3, K5, DENSE, fuse="sum")
LARGE_STEM: Final = network("sknet", K3, K5, stem=STEM | {"kernel": 7})


def card(family: Any, channels: int = 3) -> ModelSpec:
    """SKNet-50's card around another network."""
    spec, _ = load_card("sknet50")
    return spec.model_copy(
        update={"name": "tiny", "network": family, "input": InputSpec(channels=channels, height=SIZE[0], width=SIZE[1])}
    )


def zoo(family: Any, **options: Any) -> Callable[[], ir.Model]:
    """As ``skdeploy export`` makes it, from TorchScript's exporter, which is ten times faster, unless told otherwise."""
    chosen = FAST.model_copy(update=options)
    return lambda: simplify(trace(live(family).float(), card(family), chosen))


def fashion() -> ir.Model:
    spec, _ = load_card("sknet-fashion")
    torch.manual_seed(0)
    return simplify(trace(build(spec).eval(), spec, FAST))


def elsewhere(*ports: str, softmax: bool = False) -> Callable[[], ir.Model]:
    def make() -> ir.Model:
        blocks = [foreign.PORTS[port]() for port in ports]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "foreign.onnx"
            foreign.export(foreign.live(foreign.Classifier(*blocks, softmax=softmax)), path, "torchscript")
            model = simplify(read_foreign(path))
        return RewriteSelect()(model).model

    return make


MAKERS: Final[dict[str, Callable[[], ir.Model]]] = {
    **{name: zoo(family) for name, family in VARIANTS.items()},
    "sknet with attention": zoo(VARIANTS["sknet"], attention=True),
    "sknet of three branches with attention": zoo(VARIANTS["sknet of three branches"], attention=True),
    "sknet as a plain sum of three": zoo(SUM_OF_THREE),
    "sknet with a large stem": zoo(LARGE_STEM),
    "sknet of raw pixels of any size": zoo(VARIANTS["sknet"], embed_preprocess=True, dynamic_size=True, attention=True),
    "sknet for two images at opset 20": zoo(VARIANTS["sknet of three branches"], batch=2, opset=20),
    "sknet by torch.export": zoo(VARIANTS["sknet"], exporter="dynamo"),
    "sknet-fashion": fashion,
    "foreign timm": elsewhere("timm", "concatenated"),
    "foreign three separate layers": elsewhere("three separate layers", softmax=True),
}
# For what takes longer: of each kind one.
VARIED: Final = (
    "sknet",
    "sknet of three branches with attention",
    "sknet as a plain sum",
    "sknet with Caffe's pool",
    "resnet of basic blocks",
    "resnet with a deep stem and average pools",
    "linear_sknet",
    "shufflenet_v2",
    "sknet of raw pixels of any size",
    "sknet for two images at opset 20",
    "sknet-fashion",
    "foreign timm",
    "foreign three separate layers",
)


@cache
def _serialised(name: str) -> bytes:
    with threads.single():
        return ir.to_proto(MAKERS[name]()).SerializeToString()


def graph(name: str) -> ir.Model:
    """A fresh copy for each caller."""
    return ir.from_proto(onnx.load_from_string(_serialised(name)))


def images(model: ir.Model, count: int = 4, *, seed: int = 0) -> Array:
    """Random inputs of the graph's own layout: normalised images, or 8-bit pixels."""
    value = model.graph.inputs[0]
    assert value.shape is not None
    generator = np.random.default_rng(seed)
    sizes = iter(SIZE)
    shape = [dim if isinstance(dim, int) else next(sizes) for dim in value.shape[1:]]
    batch = value.shape[0] if isinstance(value.shape[0], int) else count
    if value.dtype == ir.DataType.UINT8:
        return generator.integers(0, 256, (batch, *shape), np.uint8)
    return generator.standard_normal((batch, *shape)).astype(np.float32)


def outputs(model: ir.Model, feed: Array, also: tuple[str, ...] = ()) -> dict[str, Array]:
    """All outputs and the tensors ``also``, in ONNX Runtime, operator by operator as the ONNX standard defines them."""
    proto = ir.to_proto(model)
    known = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in also if name not in known)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # no Q/DQ is fused away
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, {model.graph.inputs[0].name or "": feed}), strict=True))
    if model.graph.inputs[0].name in also:
        found[model.graph.inputs[0].name or ""] = feed
    return found


def channel_maxima(model: ir.Model, tensors: tuple[str, ...]) -> dict[str, NDArray[np.float32]]:
    """The largest magnitude of each channel on sixteen random images."""
    found = outputs(model, images(model, 16, seed=5), tensors)
    return {
        name: np.abs(np.moveaxis(found[name], 1, 0)).reshape(found[name].shape[1], -1).max(axis=1) for name in tensors
    }


def scales_of(model: ir.Model, placement: Placement) -> dict[str, float]:
    """Half of the largest magnitude is 127 steps, so that saturation happens."""
    found = outputs(model, images(model, 4, seed=6), placement.tensors)
    return {name: max(float(np.abs(found[name]).max()) / 254, 1e-6) for name in placement.tensors}


def weights_of(model: ir.Model, placement: Placement) -> dict[str, Any]:
    nodes = {node.name: node for node in model.graph}
    return {name: quantize_weight(nodes[name]) for name in placement.weighted}


def check(model: ir.Model) -> None:
    """That the graph is valid, and that names are unique."""
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert names_are_unique(model)


def names_are_unique(model: ir.Model) -> bool:
    values = [value.name for node in model.graph for value in node.outputs] + list(model.graph.initializers)
    values += [value.name for value in model.graph.inputs]
    nodes = [node.name for node in model.graph]
    return len(set(values)) == len(values) and len(set(nodes)) == len(nodes)


def difference(found: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """The largest over the outputs, relative to each one's largest number."""
    return max(
        float(np.abs(found[name].astype(np.float64) - value).max() / np.abs(value).max())
        for name, value in expected.items()
    )


def placed(name: str) -> tuple[ir.Model, Placement]:
    model = graph(name)
    return model, place(model)


def small(
    nodes: list[onnx.NodeProto],
    shape: tuple[int | str, ...],
    weights: Mapping[str, Any] | None = None,
    result: tuple[str, ...] = ("y",),
    opset: int = 19,
) -> ir.Model:
    """A graph of these nodes, called ``m/<operator>`` unless they have names, from ``input`` of this shape."""
    for node in nodes:
        node.name = node.name or f"m/{node.op_type}"
    proto = model_of(nodes, {"input": shape}, dict.fromkeys(result), weights, opset=opset)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

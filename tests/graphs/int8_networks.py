"""INT8 graphs of small networks: calibrated on noise, which is as good as images where only arithmetic is compared."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from skdeploy.core.architecture import NetworkSpec
from skdeploy.core.spec import CalibrationMethod, ModelSpec, TensorSpec
from skdeploy.images.dataset import Dataset
from skdeploy.passes.half import HalfPrecision
from skdeploy.passes.simplify import simplify
from skdeploy.passes.trace import trace
from skdeploy.passes.trace_options import TraceOptions
from skdeploy.quant.calibrate import CalibrationSettings, calibrate
from skdeploy.quant.quantize import Quantized, quantize
from skdeploy.quant.ranges import Algorithm
from tests.graphs.networks import Array, card
from tests.zoo.tiny_networks import K3, K5, K7, live, network

# Channels a group are multiples of 4, so that grouped convolutions are INT8 too.
STAGES = [
    {"units": 1, "middle_channels": 16, "out_channels": 16, "stride": 1},
    {"units": 2, "middle_channels": 16, "out_channels": 24, "stride": 2, "gate_width": 5},
]
TWO = network("sknet", K3, K5, stages=STAGES)
THREE = network("sknet", K3, K5, K7, stages=STAGES)
TORCHSCRIPT = TraceOptions(exporter="torchscript")
HEIGHT, WIDTH = 20, 24

_made: dict[tuple[str, TraceOptions, str], bytes] = {}


def spec_of(structure: NetworkSpec) -> ModelSpec:
    return card(structure, height=HEIGHT, width=WIDTH)


def pixels(count: int, *, seed: int = 0) -> Array:
    """Random photographs, uint8 (N, H, W, 3): low frequencies, as an image has."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (count, HEIGHT // 4, WIDTH // 4, 3))
    noise = generator.integers(-20, 21, (count, HEIGHT, WIDTH, 3))
    return np.clip(small.repeat(4, axis=1).repeat(4, axis=2) + noise, 0, 255).astype(np.uint8)


def normalised(spec: ModelSpec, raw: Array) -> Array:
    """What the network's float input takes: float32 (N, 3, H, W)."""
    mean, std = np.float32(spec.preprocess.mean), np.float32(spec.preprocess.std)
    planes: Array = ((raw.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(planes)


def feeds_for(model: ir.Model, spec: ModelSpec, raw: Array) -> dict[str, Array]:
    name, whole = model.graph.inputs[0].name or "", model.graph.inputs[0].dtype == ir.DataType.UINT8
    return {name: raw if whole else normalised(spec, raw)}


def single(structure: NetworkSpec, options: TraceOptions = TORCHSCRIPT) -> ir.Model:
    """The FP32 graph."""
    key = (structure.model_dump_json(), options, "fp32")
    if key not in _made:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's own; tests/passes/test_trace.py has what we say of them
            graph = simplify(trace(live(structure).float(), spec_of(structure), options))
        _made[key] = ir.to_proto(graph).SerializeToString()
    return ir.from_proto(onnx.load_from_string(_made[key]))


def quantized(structure: NetworkSpec, options: TraceOptions = TORCHSCRIPT, *keep: str, **algorithm: Any) -> Quantized:
    spec, model = spec_of(structure), single(structure, options)
    choices = Algorithm(version=1, method=CalibrationMethod.MINMAX, **algorithm)
    image = model.graph.inputs[0]
    assert image.shape is not None
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in image.shape)
    inputs = (
        TensorSpec(
            name=image.name or "", dtype="uint8" if image.dtype == ir.DataType.UINT8 else "float32", shape=shape
        ),
    )
    ranges = calibrate(
        model, inputs, spec, Dataset("noise", pixels=pixels(16, seed=3)), CalibrationSettings(choices, 16)
    )
    return quantize(model, spec, ranges, keep)


def int8(structure: NetworkSpec, options: TraceOptions = TORCHSCRIPT, *, half: bool = False) -> ir.Model:
    """The INT8 graph with all the algorithm's parts; made once, and a fresh copy for each caller."""
    key = (structure.model_dump_json(), options, "int8")
    if key not in _made:
        _made[key] = ir.to_proto(quantized(structure, options).model).SerializeToString()
    model = ir.from_proto(onnx.load_from_string(_made[key]))
    return HalfPrecision()(model).model if half else model

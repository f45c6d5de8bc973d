"""Small networks as after training, their graphs, and the independent runs that the tests of graphs compare with."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skdeploy.core.architecture import SKNetSpec
from skdeploy.core.spec import ModelSpec
from skdeploy.passes.trace import trace
from skdeploy.passes.trace_options import TraceOptions
from skdeploy.zoo.selective_kernel import Gate
from skdeploy.zoo.sknet import SKNet
from tests import threads, tiny
from tests.conftest import FAST

Array = NDArray[Any]
MEAN, STD = (0.3, 0.5, 0.6), (0.2, 0.25, 0.3)

# Logits in float32 against float64, relative to the largest: a dozen layers of at most a hundred terms round to about 1e-6,
# and any wrong coefficient shows in the first digits.
FLOAT32_ERROR = 2e-5


def card(network: SKNetSpec, *, height: int = 20, width: int = 24) -> ModelSpec:
    """The tiny card of another network, size and normalisation."""
    spec = tiny.spec_of(height=height, width=width, resize=max(height, width), mean=MEAN, std=STD)
    return spec.model_copy(update={"network": network})


def live(spec: ModelSpec) -> SKNet:
    """As after training: every batch normalisation scales and shifts and has statistics of its own input; gates decide."""
    torch.manual_seed(1)
    model = SKNet(spec.network, spec.input.channels)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.5, 1.0, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.5, generator=generator)
            module.momentum = 1.0  # the running statistics are those of the one batch below
        elif isinstance(module, Gate):
            nn.init.normal_(module.fc2.weight, 0.0, 1.0, generator=generator)
    with (
        threads.single(),
        torch.no_grad(),
    ):  # sums over several round otherwise: every caller is to get the same network
        model.train()(torch.from_numpy(images(8, seed=9)))
    return model.eval().requires_grad_(False)


def images(count: int, height: int = 20, width: int = 24, *, seed: int = 0) -> Array:
    """Normalised images, float32 (N, 3, H, W)."""
    return np.random.default_rng(seed).standard_normal((count, 3, height, width)).astype(np.float32)


def torch_logits(model: nn.Module, inputs: Array) -> Array:
    """What the training form computes, in float64."""
    with torch.no_grad():
        logits: Tensor = copy.deepcopy(model).double()(torch.from_numpy(inputs).double())
    return logits.numpy()


_traced: dict[tuple[str, TraceOptions], bytes] = {}


def traced(spec: ModelSpec, options: TraceOptions | None = None) -> ir.Model:
    """The graph of ``live(spec)``, by TorchScript's exporter unless told otherwise; traced once, and a fresh copy for each
    caller.
    """
    options = options or FAST
    key = (spec.model_dump_json(), options)
    if key not in _traced:
        _traced[key] = ir.to_proto(trace(live(spec), spec, options)).SerializeToString()
    return ir.from_proto(onnx.load_from_string(_traced[key]))


def run(model: ir.Model | onnx.ModelProto, inputs: Array) -> dict[str, Array]:
    """Outputs of a graph in ONNX Runtime itself, without any code of skdeploy between."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # for tiny graphs, waking threads takes longer than the work
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input": inputs}), strict=True))


def relative_error(found: Array, expected: Array) -> float:
    """The largest difference, relative to the largest expected value."""
    assert found.shape == expected.shape
    return float(np.max(np.abs(found.astype(np.float64) - expected)) / np.max(np.abs(expected)))


def sqnr_db(found: Array, expected: Array) -> float:
    """Signal to noise over everything, in dB."""
    noise = found.astype(np.float64) - expected
    return float(10 * np.log10(np.sum(expected.astype(np.float64) ** 2) / np.sum(noise**2)))

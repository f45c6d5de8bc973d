"""What the deploy form is worth: SKNet-50 as skdeploy exports it, against the same network written the usual way.

The peer is the select that ports of SKNet write (stack the branches, sum them, average, softmax over the stacked logits,
multiply, sum), batch normalisation left to the exporter and the simplifier. Same weights, same exporter, same onnx-simplifier,
same ONNX Runtime with two threads, float32, one 224 x 224 image. Runs are interleaved; the result is a ratio of medians.
"""

from __future__ import annotations

import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import onnx
import onnxsim
import torch
from torch import Tensor, nn

from benchmarks.timing import in_turns, ratio_of_medians, session, untrained
from skdeploy.ir.large import save_model
from skdeploy.passes.simplify import simplify
from skdeploy.passes.trace import trace
from skdeploy.passes.trace_options import TraceOptions
from skdeploy.zoo.selective_kernel import Gate, SelectiveKernelConv

ROUNDS: Final = 60
AT_MOST: Final = 0.90
MAX_NODES: Final = 320


class UsualSelect(nn.Module):
    """Selective kernel convolution as it is usually written, with the weights of ours: (N, C, H, W) -> (N, C, H', W')."""

    def __init__(self, ours: SelectiveKernelConv) -> None:
        super().__init__()
        assert isinstance(ours.gate, Gate)  # a gate of another kind would be another benchmark
        self.branches, self.gate = ours.branches, ours.gate

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([branch(x) for branch in self.branches], dim=1)
        statistics_ = maps.sum(1).mean((2, 3), keepdim=True)
        gate = self.gate
        logits = gate.fc2(gate.squeeze(gate.bn(gate.fc1(statistics_))))
        weights = logits.reshape(-1, gate.branches, gate.channels, 1, 1).softmax(1)
        selected: Tensor = (maps * weights).sum(1)
        return selected


def replace_select(module: nn.Module) -> None:
    """Puts the usual form in place of ours, everywhere below ``module``."""
    for name, child in module.named_children():
        if isinstance(child, SelectiveKernelConv):
            setattr(module, name, UsualSelect(child))
        else:
            replace_select(child)


def export_usual(network: nn.Module, path: Path) -> None:
    """torch.onnx and onnx-simplifier, as anyone would call them."""
    program = torch.onnx.export(
        network,
        (torch.zeros(2, 3, 224, 224),),
        dynamo=True,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=19,
        verbose=False,
    )
    assert program is not None
    buffer = io.BytesIO()
    onnx.save(program.model_proto, buffer)
    simplified, _ = onnxsim.simplify(onnx.load_from_string(buffer.getvalue()))
    onnx.save(simplified, str(path))


def measure() -> dict[str, object]:
    """Ratio of latencies, ours to the usual form, and the sizes of both graphs."""
    spec, network = untrained("sknet50")
    with TemporaryDirectory() as folder:
        ours, usual = Path(folder) / "ours.onnx", Path(folder) / "usual.onnx"
        save_model(simplify(trace(network, spec, TraceOptions())), ours)
        replace_select(network)
        export_usual(network, usual)
        sessions = {"ours": session(ours), "usual": session(usual)}
        nodes = {name: len(onnx.load(path).graph.node) for name, path in (("ours", ours), ("usual", usual))}

    feeds = {"input": np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)}
    outputs = {name: running.run(None, feeds)[0] for name, running in sessions.items()}
    np.testing.assert_allclose(outputs["ours"], outputs["usual"], rtol=1e-3, atol=1e-4 * np.abs(outputs["usual"]).max())
    times = in_turns(sessions, dict.fromkeys(sessions, feeds), ROUNDS)
    return {
        **ratio_of_medians(times, "ours", "usual", AT_MOST),
        "nodes": nodes,
        "nodes_at_most": MAX_NODES,
        "nodes_reached": nodes["ours"] <= MAX_NODES,
    }

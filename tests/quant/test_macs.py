"""Multiply-accumulates of graphs against torch's own counter, the cards' figures, and a loop that counts them one by one."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from skdeploy.core.errors import ExportError
from skdeploy.ir.placement import place
from skdeploy.passes.trace import trace
from skdeploy.passes.trace_options import TraceOptions
from skdeploy.quant.macs import macs_of, share_of_macs
from skdeploy.zoo.build import build, build_meta
from skdeploy.zoo.cards import load_card
from skdeploy.zoo.fold import count_macs
from tests.conftest import FAST, TinySpec
from tests.graphs import unets
from tests.graphs.networks import (
    card,
    live,
    traced,
)


def second_layers(macs: dict[str, int]) -> int:
    """Of the gates: the deploy form of two branches has one weight a channel, for the difference, in place of two."""
    return sum(count for name, count in macs.items() if ".fc2/" in name)


def test_they_are_those_that_torch_counts(tiny_spec: TinySpec) -> None:
    spec = card(tiny_spec(branches=3))
    assert sum(macs_of(traced(spec)).values()) == count_macs(live(spec), spec.input.shape)


def test_two_branches_need_half_of_a_gates_second_layer(tiny_spec: TinySpec) -> None:
    spec = card(tiny_spec(branches=2))
    macs = macs_of(traced(spec))
    assert second_layers(macs) > 0
    assert sum(macs.values()) + second_layers(macs) == count_macs(live(spec), spec.input.shape)


def test_the_graph_of_a_trained_network_has_its_cards_figure() -> None:
    spec, _ = load_card("sknet-fashion")
    macs = macs_of(trace(build(spec).eval(), spec, FAST))
    assert sum(macs.values()) + second_layers(macs) == spec.reference.macs == 10_181_248
    assert macs["stem.conv/Conv"] == 14 * 14 * 32 * 9
    assert macs["classifier/Gemm"] == 256 * 10


def test_the_convention_is_that_of_the_paper() -> None:
    """SKNet, table 1: 4.47 G for SKNet-50. Counted by torch on the same definition as above, and without weights."""
    spec, _ = load_card("sknet50")
    assert count_macs(build_meta(spec), spec.input.shape) == pytest.approx(spec.reference.macs, rel=0.01)


def counted(out: tuple[int, int, int], into: int, kernel: int, groups: int) -> int:
    """One by one: every output value takes each weight of its filter once."""
    filters, height, width = out
    return sum(1 for _ in product(range(filters), range(height), range(width), range(into // groups), range(kernel**2)))


GRAPH = """
<ir_version: 10, opset_import: ["" : 19]>
layers (float[{batch},4,9,11] input) => (float[{batch},5,20] logits)
<int64[3] rows = {{0,6,20}}>
{{
  conv = Conv<pads=[1,1,1,1], strides=[2,3], group=2>(input, w)
  point = Conv(conv, v)
  flat = Reshape(point, rows)
  turned = Transpose<perm=[0,2,1]>(flat)
  product = MatMul(turned, m)
  logits = Transpose<perm=[0,2,1]>(product)
  square = MatMul(turned, flat)
}}
"""


def layers(batch: int | str = "batch") -> ir.Model:
    proto = onnx.parser.parse_model(GRAPH.format(batch=batch))
    for name, shape in (("w", (6, 2, 3, 3)), ("v", (6, 6, 1, 1)), ("m", (6, 5))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name))
    for node in proto.graph.node:
        node.name = f"{node.output[0]}/{node.op_type}"
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


@pytest.mark.parametrize("batch", ["batch", 7])
def test_strides_groups_and_matrices_count_for_one_image_whatever_the_batch(batch: int | str) -> None:
    assert macs_of(layers(batch)) == {
        "conv/Conv": counted((6, 5, 4), 4, 3, 2),
        "point/Conv": counted((6, 5, 4), 6, 1, 1),
        "product/MatMul": 20 * 6 * 5,
        "square/MatMul": 20 * 6 * 20,  # of two activations: no weight, and computation all the same
    }


@pytest.mark.parametrize("batch", ["batch", 1, 7])
def test_a_layer_on_tokens_counts_each_of_an_images_tokens(batch: int | str) -> None:
    """Exporters write a linear layer on (N, 30, 4) as a Gemm on (N * 30, 4), whose rows no shape tells for a free batch."""
    proto = onnx.parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["" : 19]>
        tokens (float[{batch},4,6,5] input) => (logits)
        <int64[2] flat = {{-1,4}}>
        {{
          turned = Transpose<perm=[0,2,3,1]>(input)
          rows = Reshape(turned, flat)
          logits = Gemm(rows, w)
        }}
        """
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((4, 9), np.float32), "w"))
    proto.graph.node[-1].name = "m/Gemm"
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    assert macs_of(model, (6, 5)) == {"m/Gemm": 30 * 4 * 9}


@pytest.mark.parametrize("raw_pixels", [False, True])
def test_an_open_image_size_takes_the_size_that_is_given(tiny_spec: TinySpec, raw_pixels: bool) -> None:
    spec = card(tiny_spec())
    options = TraceOptions(exporter="torchscript", dynamic_size=True, embed_preprocess=raw_pixels)
    graph = trace(live(spec), spec, options)
    before = ir.to_proto(graph).SerializeToString(deterministic=True)
    assert macs_of(graph, (20, 24)) == macs_of(traced(spec))
    assert ir.to_proto(graph).SerializeToString(deterministic=True) == before
    assert sum(macs_of(graph, (40, 48)).values()) > 3 * sum(macs_of(graph, (20, 24)).values())
    with pytest.raises(ExportError, match=r"multiply-accumulates of stem\.conv/Conv"):
        macs_of(graph)


def test_the_share_of_some_layers_is_their_part_of_all(tiny_spec: TinySpec) -> None:
    graph = traced(card(tiny_spec()))
    macs = macs_of(graph)
    placed = place(graph).weighted
    assert share_of_macs(graph, macs) == 1
    assert share_of_macs(graph, ()) == 0
    assert 0.5 < share_of_macs(graph, placed) < 1  # the gates, and stage 0's groups of 2 channels, are not INT8
    assert share_of_macs(graph, (*placed, *placed)) == share_of_macs(graph, placed)


def test_transposed_and_other_convolutions_and_attention_count_as_torch_does() -> None:
    """Torch's own counter; a multiply-accumulate is two of its operations."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 8, 3, stride=2, groups=1)
            self.line = nn.Conv1d(8, 16, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.line(self.up(images).flatten(2))
            return tokens.transpose(1, 2) @ tokens

    network, example = Attention().eval(), torch.zeros(1, 3, 5, 6)
    with FlopCounterMode(display=False) as counter:
        network(example)
    macs = macs_of(unets.exported(network, example.numpy()))
    assert 2 * sum(macs.values()) == counter.get_total_flops()
    assert len(macs) == 3
    for dims in (1, 3):
        whole, image = unets.unet("transposed", "concat", dims), torch.from_numpy(unets.noise(dims, 1))
        with FlopCounterMode(display=False) as counter:
            whole(image)
        assert 2 * sum(macs_of(unets.graph("transposed", "concat", dims)).values()) == counter.get_total_flops()

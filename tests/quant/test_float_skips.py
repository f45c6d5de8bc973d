"""Skips that go into a last layer which makes a map stay in floating point: which they are, and what that is worth."""

from __future__ import annotations

from itertools import chain

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from skdeploy.core.spec import CalibrationMethod, ModelSpec
from skdeploy.images.dataset import Dataset
from skdeploy.ir.placement import Edge, place
from skdeploy.passes.half import HalfPrecision
from skdeploy.passes.select import RewriteSelect
from skdeploy.quant.quantize import Quantized, quantize
from skdeploy.zoo.cards import read_card
from tests.graphs import unets
from tests.graphs.networks import sqnr_db
from tests.graphs.quantizable import check, normal, small
from tests.networks.denoising import noisy_pairs
from tests.networks.skff_unet import WEIGHTS, SKFFUNet
from tests.quant.noise import calibrated
from tests.quant.test_unets import exact, run

op = onnx.helper.make_node
ENTER = op("Conv", ["input", "w"], ["x"], name="enter")
BODY = [
    op("Conv", ["x", "v"], ["a"], name="one"),
    op("Relu", ["a"], ["r"], name="relu"),
    op("Conv", ["r", "v"], ["b"], name="two"),
    op("Add", ["x", "b"], ["s"], name="skip"),
]
LEAVE = op("Conv", ["s", "u"], ["y"], name="leave")
CONSTANTS = {"w": normal(8, 3, 1, 1), "v": normal(8, 8, 1, 1), "u": normal(3, 8, 1, 1)}


def copied(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]


def test_the_sum_reads_the_float_and_the_layer_int8() -> None:
    model = small(copied([ENTER, *BODY, LEAVE]), ("N", 3, 8, 8), CONSTANTS)
    found = place(model)
    assert found.readers["x"] == (Edge("one", 0),)
    assert found.raw["x"] == (Edge("skip", 0),)
    assert found.readers["s"] == (Edge("leave", 0),)
    off = place(model, float_skips=False)
    assert off.readers["x"] == (Edge("one", 0), Edge("skip", 0))
    assert off.raw == {}


LATER = [op("Conv", ["s", "v"], ["c"], name="last but one"), op("Conv", ["c", "u"], ["y"], name="leave")]
POOLED = [op("Conv", ["s", "u"], ["m"], name="leave"), op("GlobalAveragePool", ["m"], ["y"], name="mean")]
RELU = [op("Conv", ["input", "w"], ["q"], name="enter"), op("Relu", ["q"], ["x"], name="first")]
ACTIVE = [op("Relu", ["s"], ["t"], name="after"), op("Conv", ["t", "u"], ["y"], name="leave")]


@pytest.mark.parametrize(
    "nodes",
    [
        [ENTER, *BODY, *LATER],  # another layer comes, which makes a map of its own
        [ENTER, *BODY, *POOLED],  # a class: the mean over places averages the errors
        [*RELU, *BODY, LEAVE],  # shifted, the layer reads 256 levels
        [ENTER, *BODY, *ACTIVE],
    ],
    ids=["a layer later", "a mean over places", "a ReLU before", "a ReLU after"],
)
def test_all_other_skips_are_int8(nodes: list[onnx.NodeProto]) -> None:
    found = place(small(copied(nodes), ("N", 3, 8, 8), CONSTANTS))
    assert "skip" in {edge.node for edge in chain.from_iterable(found.readers.values())}
    assert found.raw == {}


@pytest.fixture(scope="module")
def denoiser() -> tuple[SKFFUNet, ModelSpec]:
    network = SKFFUNet().eval()
    network.load_state_dict(load_file(WEIGHTS))
    return network, read_card(WEIGHTS.parent / "denoiser.toml")


def test_a_denoiser_gains_what_half_the_noise_is(denoiser: tuple[SKFFUNet, ModelSpec]) -> None:
    """2.4 dB are measured on 128 images."""
    network, spec = denoiser
    images = Dataset("crops", pixels=noisy_pairs(16, 9, held_out=False)[0])
    graph = unets.exported(network, np.zeros((1, 3, 64, 64), np.float32))
    RewriteSelect()(graph)
    feed = (noisy_pairs(8)[0] / 255).transpose(0, 3, 1, 2).astype(np.float32)

    def quantized(float_skips: bool) -> Quantized:
        ranges = calibrated(graph, spec, images, method=CalibrationMethod.MSE, float_skips=float_skips)
        return quantize(graph, spec, ranges)

    found = {switch: quantized(switch) for switch in (False, True)}
    check(HalfPrecision()(found[True].model.clone()).model)
    assert len(found[True].placement.raw) == 3  # maps of the image's size
    with torch.no_grad():
        expected = exact(network, feed)
    quality = {switch: sqnr_db(run(each.model, feed), expected) for switch, each in found.items()}
    assert quality[True] > quality[False] + 1.5

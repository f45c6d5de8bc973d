"""The paper's Caffe network as its prototxt says it, and a forward pass after Caffe's own definitions, in numpy and float64.

Layers, names and parameters: sknet50.prototxt and sknet101.prototxt of implus/SKNet. What each type computes: BVLC's Caffe, and
the layers CuDNNBatchNorm and Axpy of the SENet and SKNet forks. Nothing of skdeploy is used here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.checkpoints import caffe_wire

Array = NDArray[np.float64]
EPSILON = 1e-5  # CuDNNBatchNorm's default, which the prototxts leave


@dataclass(frozen=True)
class Layer:
    """One layer of a prototxt; ``options`` are those of its convolution_param, pooling_param, and so on."""

    name: str
    kind: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """conv<S>_1, conv<S>_2, ...: the numbers in which the official networks differ."""

    units: int
    middle: int
    out: int
    stride: int
    gate: int


def sknet(stem: int, stages: Sequence[Stage], groups: int, classes: int) -> list[Layer]:
    """The prototxt. The branches are called 3x3g32 and 3x3g32d2 whatever ``groups`` is, so that all names are official."""
    layers = [*conv_bn("conv1/7x7_s2", "data", stem, relu=True, kernel=7, stride=2, pad=3)]
    layers.append(Layer("pool1/3x3_s2", "Pooling", ("conv1/7x7_s2/bn",), ("pool1/3x3_s2",), {"kernel": 3, "stride": 2}))
    bottom = "pool1/3x3_s2"
    for number, stage in enumerate(stages, 2):
        for unit in range(1, stage.units + 1):
            layers += block(f"conv{number}_{unit}", bottom, stage, stage.stride if unit == 1 else 1, groups, unit == 1)
            bottom = f"conv{number}_{unit}"
    layers.append(Layer("avepool/7x7", "Average", (bottom,), ("avepool/7x7",)))  # 7 x 7 is the whole map at 224 pixels
    layers.append(Layer("classifier", "InnerProduct", ("avepool/7x7",), ("classifier",), {"outputs": classes}))
    return layers


def conv_bn(name: str, bottom: str, outputs: int, *, relu: bool, **options: int) -> list[Layer]:
    layers = [
        Layer(name, "Convolution", (bottom,), (name,), {"outputs": outputs, **options}),
        Layer(f"{name}/bn", "CuDNNBatchNorm", (name,), (f"{name}/bn",)),
    ]
    return [*layers, Layer(f"{name}/relu", "ReLU", (f"{name}/bn",), (f"{name}/bn",))] if relu else layers


def block(n: str, bottom: str, stage: Stage, stride: int, groups: int, first: bool) -> list[Layer]:
    reduced, plain, dilated = f"{n}/1x1_reduce/bn", f"{n}/3x3g32/bn", f"{n}/3x3g32d2/bn"
    wide = {"kernel": 3, "groups": groups, "stride": stride}
    layers = [
        *conv_bn(f"{n}/1x1_reduce", bottom, stage.middle, relu=True, kernel=1),
        *conv_bn(f"{n}/3x3g32", reduced, stage.middle, relu=True, pad=1, **wide),
        *conv_bn(f"{n}/3x3g32d2", reduced, stage.middle, relu=True, pad=2, dilation=2, **wide),
        Layer(f"{n}_3x3", "Eltwise", (plain, dilated), (f"{n}_3x3",)),
        Layer(f"{n}/B_global_pool", "Average", (f"{n}_3x3",), (f"{n}/B_global_pool",)),
        *conv_bn(f"{n}/B_fc1", f"{n}/B_global_pool", stage.gate, relu=True, kernel=1),
        Layer(f"{n}/B_fc2", "Convolution", (f"{n}/B_fc1/bn",), (f"{n}/B_fc2",), {"outputs": 2 * stage.middle}),
        Layer(f"{n}/B_re", "Reshape", (f"{n}/B_fc2",), (f"{n}/B_re",), {"shape": (0, 2, -1, 0)}),
        Layer(f"{n}/B_softmax", "Softmax", (f"{n}/B_re",), (f"{n}/B_softmax",)),
        Layer(f"{n}/B_slice", "Slice", (f"{n}/B_softmax",), (f"{n}/B_slice0_", f"{n}/B_slice1_")),
        Layer(f"{n}/B_slice1", "Reshape", (f"{n}/B_slice1_",), (f"{n}/B_slice1",), {"shape": (0, stage.middle, -1, 0)}),
        Layer(f"{n}/B_slice0", "Reshape", (f"{n}/B_slice0_",), (f"{n}/B_slice0",), {"shape": (0, stage.middle, -1, 0)}),
        Layer(f"{n}/B_w0/reshape", "Reshape", (f"{n}/B_slice0",), (f"{n}/B_w0/reshape",), {"shape": (0, 0)}),
        Layer(f"{n}/scale", "Scale", (plain, f"{n}/B_w0/reshape"), (f"{n}/scale",)),
        Layer(f"{n}/B_axpy", "Axpy", (f"{n}/B_slice1", dilated, f"{n}/scale"), (f"{n}/B_axpy",)),
        *conv_bn(f"{n}/1x1_increase", f"{n}/B_axpy", stage.out, relu=False, kernel=1),
    ]
    shortcut = bottom
    if first:
        layers += conv_bn(f"{n}/1x1_proj", bottom, stage.out, relu=False, kernel=1, stride=stride)
        shortcut = f"{n}/1x1_proj/bn"
    layers.append(Layer(n, "Eltwise", (f"{n}/1x1_increase/bn", shortcut), (n,)))
    return [*layers, Layer(f"{n}/relu", "ReLU", (n,), (n,))]


def shapes(layers: Sequence[Layer], channels: int) -> dict[str, list[tuple[int, ...]]]:
    """The shapes of the blobs that each layer has, of the layers that have any."""
    widths, found = {"data": channels}, {}
    for layer in layers:
        width = widths[layer.bottoms[0]]
        outputs = layer.options.get("outputs", width)
        if layer.kind == "Convolution":
            kernel = layer.options.get("kernel", 1)
            found[layer.name] = [(outputs, width // layer.options.get("groups", 1), kernel, kernel)]
        elif layer.kind == "CuDNNBatchNorm":
            found[layer.name] = [(1, width, 1, 1)] * 4
        elif layer.kind == "InnerProduct":
            found[layer.name] = [(outputs, width), (outputs,)]
        reshaped = layer.options["shape"][1] if layer.kind == "Reshape" else 0
        widths |= dict.fromkeys(layer.tops, reshaped or outputs)
    return found


def trained(layers: Sequence[Layer], channels: int, seed: int) -> dict[str, list[Array]]:
    """Blobs as after a training, by layer: no statistic is 0 or 1, and all are float32 numbers.

    Every fourth channel is quiet, its convolution and its statistics ten times smaller: there the epsilon is seen.
    """
    random = np.random.default_rng(seed)
    blobs = {
        name: [random.normal(0, 0.3, shape) for shape in group] for name, group in shapes(layers, channels).items()
    }
    for layer in layers:
        if layer.kind == "Convolution":
            select = layer.name.endswith("B_fc2")  # no normalisation follows; a gate that is far from one half
            (weight,) = blobs[layer.name]
            weight *= (3.0 if select else 1.4) / 0.3 / np.sqrt(weight[0].size)
            weight[::4] *= 1.0 if select else 0.1
        elif layer.kind == "CuDNNBatchNorm":
            scale, _, mean, variance = blobs[layer.name]
            scale[:] = random.uniform(0.5, 1.5, scale.shape)
            variance[:] = random.uniform(0.5, 1.5, scale.shape)
            mean[:, ::4] *= 0.1
            variance[:, ::4] *= 0.01
    return {name: [each.astype(np.float32).astype(np.float64) for each in group] for name, group in blobs.items()}


def caffemodel(
    layers: Sequence[Layer],
    blobs: dict[str, list[Array]],
    encode: Callable[[Array], bytes] = caffe_wire.blob,
    net_name: str = "sknet_tiny",
) -> bytes:
    """The file that Caffe would save: all layers in order, most of them without blobs."""
    data = caffe_wire.layer("input", "Input", top="data")
    written = [
        caffe_wire.layer(each.name, each.kind, map(encode, blobs.get(each.name, [])), each.bottoms, each.tops[0])
        for each in layers
    ]
    return caffe_wire.net(net_name, [data, *written])


# ----- Caffe's forward


def forward(layers: Sequence[Layer], blobs: dict[str, list[Array]], data: Array) -> Array:
    """(N, C, H, W) -> what ``classifier`` gives, (N, classes): no softmax follows it at inference."""
    tops: dict[str, Array] = {"data": data}
    for layer in layers:
        results = RUN[layer.kind]([tops[bottom] for bottom in layer.bottoms], blobs.get(layer.name, []), layer.options)
        tops |= dict(zip(layer.tops, results, strict=True))
    return tops[layers[-1].tops[0]]


def convolution(bottoms: list[Array], blobs: list[Array], options: dict[str, Any]) -> list[Array]:
    """A sum over the kernel's places, group by group; zeros around; the last window lies inside (rounded down)."""
    x, weight = bottoms[0], blobs[0]
    stride, pad = options.get("stride", 1), options.get("pad", 0)
    dilation, groups = options.get("dilation", 1), options.get("groups", 1)
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    outputs, share, kernel, _ = weight.shape
    rows, columns = ((size - dilation * (kernel - 1) - 1) // stride + 1 for size in x.shape[2:])
    top = np.zeros((len(x), outputs, rows, columns))
    per_group = outputs // groups
    for group in range(groups):
        into, of = slice(group * per_group, (group + 1) * per_group), slice(group * share, (group + 1) * share)
        for i in range(kernel):
            for j in range(kernel):
                y, z = i * dilation, j * dilation
                seen = x[:, of, y : y + stride * (rows - 1) + 1 : stride, z : z + stride * (columns - 1) + 1 : stride]
                top[:, into] += np.einsum("oc,nchw->nohw", weight[into, :, i, j], seen)
    return [top]


def batch_norm(bottoms: list[Array], blobs: list[Array], _options: dict[str, Any]) -> list[Array]:
    """Blobs scale, bias, mean, variance, each (1, C, 1, 1)."""
    scale, bias, mean, variance = blobs
    return [(bottoms[0] - mean) / np.sqrt(variance + EPSILON) * scale + bias]


def max_pool(bottoms: list[Array], _blobs: list[Array], options: dict[str, Any]) -> list[Array]:
    """PoolingLayer without padding: the number of windows is rounded up, and the last ones are clipped at the edge."""
    x, kernel, stride = bottoms[0], options["kernel"], options["stride"]
    rows, columns = (-((kernel - size) // stride) + 1 for size in x.shape[2:])
    top = np.empty((*x.shape[:2], rows, columns))
    for i in range(rows):
        for j in range(columns):
            top[:, :, i, j] = x[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel].max((2, 3))
    return [top]


def reshape(bottoms: list[Array], _blobs: list[Array], options: dict[str, Any]) -> list[Array]:
    """0 keeps the bottom's dimension, -1 takes what is left."""
    kept = [bottoms[0].shape[axis] if dim == 0 else dim for axis, dim in enumerate(options["shape"])]
    return [bottoms[0].reshape(kept)]


def softmax(bottoms: list[Array], _blobs: list[Array], _options: dict[str, Any]) -> list[Array]:
    """Over axis 1, as both softmax layers of the prototxts."""
    powers = np.exp(bottoms[0] - bottoms[0].max(1, keepdims=True))
    return [powers / powers.sum(1, keepdims=True)]


RUN: dict[str, Callable[[list[Array], list[Array], dict[str, Any]], list[Array]]] = {
    "Convolution": convolution,
    "CuDNNBatchNorm": batch_norm,
    "ReLU": lambda bottoms, _blobs, _options: [np.maximum(bottoms[0], 0)],
    "Pooling": max_pool,
    "Average": lambda bottoms, _blobs, _options: [bottoms[0].mean((2, 3), keepdims=True)],
    "Eltwise": lambda bottoms, _blobs, _options: [bottoms[0] + bottoms[1]],
    "Reshape": reshape,
    "Softmax": softmax,
    "Slice": lambda bottoms, _blobs, _options: [bottoms[0][:, :1], bottoms[0][:, 1:]],
    "Scale": lambda bottoms, _blobs, _options: [bottoms[0] * bottoms[1][:, :, None, None]],
    "Axpy": lambda bottoms, _blobs, _options: [bottoms[0] * bottoms[1] + bottoms[2]],
    "InnerProduct": lambda bottoms, blobs, _options: [bottoms[0].reshape(len(bottoms[0]), -1) @ blobs[0].T + blobs[1]],
}

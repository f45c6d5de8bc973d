"""Small U-shaped networks in one, two and three dimensions: every way up, and both kinds of skip."""

from __future__ import annotations

import io
import warnings
from functools import cache
from typing import Final, Literal

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from torch import Tensor, nn

from skdeploy.passes.simplify import simplify
from tests import threads

Up = Literal["transposed", "shuffle", "nearest", "linear"]
Skip = Literal["concat", "add"]

CONVOLUTION: Final = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: Final = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM: Final = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL: Final = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}


class Upwards(nn.Module):
    """Twice the size and another number of channels."""

    def __init__(self, up: Up, before: int, after: int, dims: int, groups: int) -> None:
        super().__init__()
        if up == "transposed":
            self.layers = nn.Sequential(TRANSPOSED[dims](before, after, 2, stride=2, groups=groups))
        elif up == "shuffle":
            self.layers = nn.Sequential(CONVOLUTION[dims](before, 4 * after, 1), nn.PixelShuffle(2))
        else:
            mode = up if up == "nearest" else {1: "linear", 2: "bilinear", 3: "trilinear"}[dims]
            aligned = None if up == "nearest" else False
            self.layers = nn.Sequential(
                nn.Upsample(scale_factor=2, mode=mode, align_corners=aligned), CONVOLUTION[dims](before, after, 1)
            )

    def forward(self, maps: Tensor) -> Tensor:
        return self.layers(maps)


class UNet(nn.Module):
    """Two levels down and up. ``residual``: what it makes is added to its input, as networks that restore images do."""

    def __init__(
        self, up: Up, skip: Skip, dims: int = 2, *, width: int = 16, groups: int = 1, residual: bool = False
    ) -> None:
        super().__init__()
        self.skip, self.residual = skip, residual
        widths = (width, 2 * width, 4 * width)

        def block(before: int, after: int) -> nn.Module:
            return nn.Sequential(
                CONVOLUTION[dims](before, after, 3, padding=1, bias=False), NORM[dims](after), nn.ReLU()
            )

        joined = 2 if skip == "concat" else 1
        self.down = nn.ModuleList(block(*pair) for pair in zip((3, *widths[:-1]), widths, strict=True))
        self.pool = POOL[dims](2)
        self.ups = nn.ModuleList(Upwards(up, 2 * each, each, dims, groups) for each in reversed(widths[:-1]))
        self.join = nn.ModuleList(block(joined * each, each) for each in reversed(widths[:-1]))
        self.head = CONVOLUTION[dims](width, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        maps, skips = image, []
        for index, block in enumerate(self.down):
            maps = block(self.pool(maps) if index else maps)
            skips.append(maps)
        for up, join, before in zip(self.ups, self.join, reversed(skips[:-1]), strict=True):
            maps = up(maps)
            maps = join(torch.cat([maps, before], dim=1) if self.skip == "concat" else maps + before)
        made = self.head(maps)
        return image + made if self.residual else made


def live(network: nn.Module, inputs: NDArray[np.float32]) -> nn.Module:
    """As after training: normalisations that scale and shift, with the statistics of these inputs."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, tuple(NORM.values())):
            nn.init.normal_(module.weight, 1.0, 0.5, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.5, generator=generator)
            module.momentum = 1.0
    with threads.single(), torch.no_grad():
        network.train()(torch.from_numpy(inputs))
    return network.eval().requires_grad_(False)


def unet(up: Up, skip: Skip, dims: int = 2, *, groups: int = 1, residual: bool = False) -> nn.Module:
    torch.manual_seed(3)
    return live(UNet(up, skip, dims, groups=groups, residual=residual), noise(dims, 4, seed=7))


def noise(dims: int, count: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Standard normal numbers of the size that the graphs are traced with."""
    sizes = {1: (48,), 2: (20, 24), 3: (8, 12, 8)}[dims]
    return np.random.default_rng(seed).standard_normal((count, 3, *sizes)).astype(np.float32)


def exported(network: nn.Module, example: NDArray[np.float32], outputs: tuple[str, ...] = ("restored",)) -> ir.Model:
    """By TorchScript's exporter, with a free batch, and simplified."""
    file = io.BytesIO()
    with warnings.catch_warnings(), threads.single():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.from_numpy(example),),
            file,
            dynamo=False,
            opset_version=19,
            input_names=["input"],
            output_names=list(outputs),
            dynamic_axes={name: {0: "batch"} for name in ("input", *outputs)},
        )
    proto = onnx.load_from_string(file.getvalue())
    model = simplify(ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True)))
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return model


@cache
def _serialised(up: Up, skip: Skip, dims: int, groups: int, residual: bool) -> bytes:
    network = unet(up, skip, dims, groups=groups, residual=residual)
    return ir.to_proto(exported(network, noise(dims, 2))).SerializeToString()


def graph(up: Up, skip: Skip, dims: int = 2, *, groups: int = 1, residual: bool = False) -> ir.Model:
    """The graph of such a network, a fresh copy for each caller."""
    return ir.from_proto(onnx.load_from_string(_serialised(up, skip, dims, groups, residual)))

"""A backbone of large selective kernels, small: after "Large Selective Kernel Network for Remote Sensing Object Detection"
(Li et al., ICCV 2023).

Two depthwise convolutions one after the other, the second with a wide dilation, see near and far. What they see is compressed
to a mean and a maximum over channels, from which each place decides, by a sigmoid a kernel, how much of both it takes. Unlike
the paper's, blocks have no layer scale, whose initial 0.01 would hide what the selection does in a network with random weights.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

WIDTHS: Final = (16, 32)
OUTPUTS: Final = ("fine", "coarse")  # at 1/2 and 1/4 of the image


class PlaceSelect(nn.Module):
    """Near and far context of each place, in the share that the place itself asks for: (N, C, H, W) to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.far = nn.Conv2d(width, width, 7, padding=9, dilation=3, groups=width)
        self.squeeze_near = nn.Conv2d(width, width // 2, 1)
        self.squeeze_far = nn.Conv2d(width, width // 2, 1)
        self.decide = nn.Conv2d(2, 2, 7, padding=3)
        self.restore = nn.Conv2d(width // 2, width, 1)

    def forward(self, maps: Tensor) -> Tensor:
        near = self.near(maps)
        far = self.far(near)
        near, far = self.squeeze_near(near), self.squeeze_far(far)
        both = torch.cat([near, far], dim=1)
        seen = torch.cat([both.mean(dim=1, keepdim=True), both.amax(dim=1, keepdim=True)], dim=1)
        share = self.decide(seen).sigmoid()
        chosen = near * share[:, 0:1] + far * share[:, 1:2]
        return maps * self.restore(chosen)


class Block(nn.Module):
    """Selection and then a perceptron at each place, each with its own skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.into, self.out_of = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.select = PlaceSelect(width)
        self.perceptron = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width),
            nn.GELU(),
            nn.Conv2d(2 * width, width, 1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        context = nn.functional.gelu(self.into(self.norm1(maps)))
        maps = maps + self.out_of(self.select(context))
        return maps + self.perceptron(self.norm2(maps))


class LSKBackbone(nn.Module):
    """Images (N, 3, H, W) to the maps of both stages, ``fine`` (N, 16, H/2, W/2) and ``coarse`` (N, 32, H/4, W/4)."""

    def __init__(self) -> None:
        super().__init__()
        before = (3, *WIDTHS[:-1])
        self.shrink = nn.ModuleList(
            nn.Sequential(nn.Conv2d(wide, width, 3, stride=2, padding=1), nn.BatchNorm2d(width))
            for wide, width in zip(before, WIDTHS, strict=True)
        )
        self.blocks = nn.ModuleList(Block(width) for width in WIDTHS)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.blocks[0](self.shrink[0](images))
        return fine, self.blocks[1](self.shrink[1](fine))


def backbone() -> LSKBackbone:
    """With random weights and, as after training, normalisations that have the statistics of images: float32, on the CPU."""
    torch.manual_seed(0)
    network = LSKBackbone()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 32, 32))
    return network.eval().requires_grad_(False)

"""A small U-net that removes noise from photographs and merges its scales by selection: after the selective kernel feature
fusion of "Learning Enriched Features for Fast Image Restoration and Enhancement" (MIRNet-v2; Zamir et al., TPAMI 2022).

Going up, each level has two maps, its own from the way down and the coarser one enlarged. They are added, pooled to a vector
and squeezed, and from that each map gets a weight for each channel: a softmax over the two, as in the selective kernel unit.
The network adds a correction to its input. ``tools/train_denoiser.py`` trained the weights beside it.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

WIDTHS: Final = (16, 24, 32)
SQUEEZED: Final = 8  # values that the weights of a fusion are computed from
SIGMA: Final = 25  # of the noise, in grey levels: the one that papers on denoising compare at
WEIGHTS: Final = Path(__file__).parents[1] / "fixtures/skff_unet.safetensors"


class Fusion(nn.Module):
    """Maps of one shape, (N, C, H, W) each, to their weighted sum."""

    def __init__(self, width: int, maps: int = 2) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(width, SQUEEZED, 1), nn.PReLU())
        self.weigh = nn.ModuleList(nn.Conv2d(SQUEEZED, width, 1) for _ in range(maps))

    def forward(self, maps: list[Tensor]) -> Tensor:
        stacked = torch.stack(maps, dim=1)
        vector = self.squeeze(stacked.sum(dim=1).mean(dim=(2, 3), keepdim=True))
        weights = torch.stack([weigh(vector) for weigh in self.weigh], dim=1).softmax(dim=1)
        return (stacked * weights).sum(dim=1)


class Block(nn.Module):
    """Two convolutions around a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.body(maps)


class SKFFUNet(nn.Module):
    """Images of 0 to 1, (N, 3, H, W), to the same without noise; H and W are multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        pairs = tuple(pairwise(WIDTHS))
        self.enter = nn.Conv2d(3, WIDTHS[0], 3, padding=1)
        self.down = nn.ModuleList(Block(width) for width in WIDTHS)
        self.shrink = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairs)
        self.fuse = nn.ModuleList(Fusion(width) for width in WIDTHS[:-1])
        self.up = nn.ModuleList(Block(width) for width in WIDTHS[:-1])
        self.leave = nn.Conv2d(WIDTHS[0], 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        maps, levels = self.enter(images), []
        for block, shrink in zip(self.down, self.shrink, strict=False):
            levels.append(block(maps))
            maps = shrink(levels[-1])
        maps = self.down[-1](maps)
        for level in reversed(range(len(levels))):
            maps = self.up[level](self.fuse[level]([levels[level], self.enlarge[level](maps)]))
        return images + self.leave(maps)

"""A classifier of volumes with selective kernels in three dimensions: (N, 1, 12, 12, 12) to logits (N, 5).

After "Attention-Based Adaptive Spectral-Spatial Kernel ResNet for Hyperspectral Image Classification" (Roy et al., TGRS 2020),
in which a kernel that sees one place over the spectrum and one that sees its neighbours too are chosen between.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from tests.networks.speaker import normalise

SIDE: Final = 12
WIDTH: Final = 16
CLASSES: Final = 5


class SelectiveKernel(nn.Module):
    """A kernel along the last axis and one of all three, concatenated; the gate is made of 3-D convolutions of one voxel."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Sequential(
            nn.Conv3d(WIDTH, WIDTH, (1, 1, 3), padding=(0, 0, 1)), nn.BatchNorm3d(WIDTH), nn.ReLU()
        )
        self.cube = nn.Sequential(nn.Conv3d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm3d(WIDTH), nn.ReLU())
        self.reduce = nn.Sequential(nn.Conv3d(WIDTH, 8, 1), nn.BatchNorm3d(8), nn.ReLU())
        self.expand = nn.Conv3d(8, 2 * WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        line, cube = self.line(x), self.cube(x)
        logits = self.expand(self.reduce((line + cube).mean((2, 3, 4), keepdim=True)))
        first, second = logits.reshape(-1, 2, WIDTH, 1, 1, 1).softmax(1).unbind(1)
        return line * first + cube * second


class Volume(nn.Module):
    """The classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(1, WIDTH, 3, padding=1), nn.BatchNorm3d(WIDTH), nn.ReLU())
        self.blocks = nn.ModuleList(SelectiveKernel() for _ in range(2))
        self.pool = nn.MaxPool3d(2)
        self.classify = nn.Linear(WIDTH, CLASSES)

    def forward(self, volume: Tensor) -> Tensor:
        x = self.stem(volume)
        x = self.pool(x + self.blocks[0](x))
        x = x + self.blocks[1](x)
        logits: Tensor = self.classify(x.mean((2, 3, 4)))
        return logits


def classifier() -> Volume:
    """With random weights and, as after training, normalisations that have the statistics of what comes in."""
    torch.manual_seed(0)
    network = Volume()
    normalise(network, torch.randn(8, 1, SIDE, SIDE, SIDE))
    return network

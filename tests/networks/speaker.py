"""A speaker embedding with selective kernels over time: (N, 80, frames) to (N, 32), any number of frames.

After "Frequency and Multi-Scale Selective Kernel Attention for Speaker Verification" (Mun, Jung, Han, Kim, SLT 2022): two
convolutions over time with different kernels, a gate that chooses between them for each channel, and at the end the mean and
deviation over time, weighed by attention.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

BANDS: Final = 80  # of the spectrogram
WIDTH: Final = 32
SIZE: Final = 32  # of the embedding


class SelectiveKernel(nn.Module):
    """Branches stacked before the batch and added up by Python's ``sum``, a fully connected layer for each: (N, C, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv1d(WIDTH, WIDTH, k, padding=k // 2), nn.ReLU(), nn.BatchNorm1d(WIDTH)) for k in (3, 7)
        )
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.reduce = nn.Sequential(nn.Linear(WIDTH, WIDTH // 2), nn.ReLU())
        self.expand = nn.ModuleList(nn.Linear(WIDTH // 2, WIDTH) for _ in range(2))

    def forward(self, frames: Tensor) -> Tensor:
        maps = [branch(frames) for branch in self.branches]
        z = self.reduce(self.pool(sum(maps)).flatten(1))
        weights = torch.stack([layer(z).unsqueeze(-1) for layer in self.expand]).softmax(0)
        return (torch.stack(maps) * weights).sum(0)


class Speaker(nn.Module):
    """The embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(BANDS, WIDTH, 5, padding=2), nn.ReLU(), nn.BatchNorm1d(WIDTH))
        self.blocks = nn.ModuleList(SelectiveKernel() for _ in range(2))
        self.attention = nn.Sequential(nn.Conv1d(WIDTH, 16, 1), nn.Tanh(), nn.Conv1d(16, WIDTH, 1))
        self.embed = nn.Linear(2 * WIDTH, SIZE)

    def forward(self, spectrogram: Tensor) -> Tensor:
        frames = self.stem(spectrogram)
        for block in self.blocks:
            frames = frames + block(frames)
        weights = self.attention(frames).softmax(2)
        mean = (frames * weights).sum(2)
        deviation = ((frames * frames * weights).sum(2) - mean * mean).clamp(min=1e-4).sqrt()
        embedding: Tensor = self.embed(torch.cat([mean, deviation], 1))
        return embedding


def speaker() -> Speaker:
    """With random weights and, as after training, normalisations that have the statistics of what comes in."""
    torch.manual_seed(0)
    network = Speaker()
    normalise(network, torch.randn(8, BANDS, 50))
    return network


def normalise(network: nn.Module, samples: Tensor) -> None:
    """Gives every batch normalisation factors of its own and the statistics of ``samples``; nothing is trained after that."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm3d)]
    for norm in norms:
        nn.init.normal_(norm.weight, 1.0, 0.2)
        nn.init.normal_(norm.bias, 0.0, 0.2)
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(samples)
    network.eval().requires_grad_(False)

"""Networks to attach selective kernels to, as after training, and the comparison with what they were before."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from skdeploy.zoo.fold import fold
from skdeploy.zoo.selective_kernel import SelectiveKernelConv

# float64 rounds at 1e-16, and the layers of these networks amplify that to 1e-14 at most; a wrong coefficient shows at once.
SAME_FUNCTION = 1e-11


def images(count: int = 2) -> Tensor:
    """Smooth images of different brightness, (N, 3, 64, 64): the means over space of noise would all be the same."""
    generator = torch.Generator().manual_seed(count)
    coarse = torch.randn(count, 3, 4, 4, dtype=torch.float64, generator=generator)
    brightness = torch.randn(count, 1, 1, 1, dtype=torch.float64, generator=generator)
    return functional.interpolate(coarse, 64, mode="bilinear") + brightness


def live(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, with batch normalisation as after training: it has the statistics of its own input."""
    generator = torch.Generator().manual_seed(1)
    for module in model.double().modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.3, generator=generator)
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images(16))
    return model.eval()


def build(make: Callable[..., nn.Module]) -> nn.Module:
    """One of pytorchcv's networks, for images of any size: its last pooling is for 224 pixels."""
    torch.manual_seed(0)
    model = make()
    features = model.get_submodule("features")
    if isinstance(features.final_pool, nn.AvgPool2d):
        features.final_pool = nn.AdaptiveAvgPool2d(1)
    return model


def selective(model: nn.Module) -> dict[str, SelectiveKernelConv]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SelectiveKernelConv)}


class AllOn(nn.Module):
    """A gate that gives one branch all attention."""

    def __init__(self, branch: int, gate: nn.Module) -> None:
        super().__init__()
        self.branch, self.gate = branch, gate

    def forward(self, statistics: Tensor) -> list[Tensor]:
        return [torch.full_like(weight, float(m == self.branch)) for m, weight in enumerate(self.gate(statistics))]


@torch.no_grad()
def difference(attached: nn.Module, model: nn.Module, branch: int = 0, *, deploy: bool = False) -> float:
    """The largest difference from ``model`` with all attention on one branch, relative to the largest output."""
    forced = fold(attached) if deploy else copy.deepcopy(attached).eval()
    for module in selective(forced).values():
        assert module.gate is not None
        module.gate = AllOn(branch, module.gate)
    expected = model(images())
    return float((forced(images()) - expected).abs().max() / expected.abs().max())


class Net(nn.Module):
    """A stem and what is given: (N, 3, H, W) -> (N, C, H', W')."""

    def __init__(self, *layers: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(self.stem(x))
        return y


def norm(channels: int = 8) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU()]

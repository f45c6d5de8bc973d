"""From a card to a network, whatever its family."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from skdeploy.core.errors import CardError
from skdeploy.core.spec import ModelSpec
from skdeploy.zoo import FAMILIES
from skdeploy.zoo.trunk import ResidualUnit

MAX_PARAMETERS: Final = 2**31 // 4  # a protobuf file ends at 2 GiB, and that is the form ONNX has


def build(spec: ModelSpec) -> nn.Module:
    """The training form of a card's network, with PyTorch's initial weights. Raises CardError for numbers that do not fit."""
    return FAMILIES[spec.network.family].build(spec.architecture, spec.input.channels)


def build_meta(spec: ModelSpec) -> nn.Module:
    """The network of a card without memory for its weights: to count, and to assign weights to."""
    with torch.device("meta"):
        return build(spec)


def require_size(spec: ModelSpec) -> None:
    """Raises CardError for a network that no export could hold, before memory is allocated for it."""
    parameters = sum(parameter.numel() for parameter in build_meta(spec).parameters())
    if parameters > MAX_PARAMETERS:
        raise CardError(
            f"{spec.name} has {parameters:,} parameters, {4 * parameters / 2**30:,.1f} GiB in FP32; an ONNX "
            f"file can hold {MAX_PARAMETERS:,}",
            advice="correct the channels under [network]",
        )


def initialise(network: nn.Module, seed: int) -> None:
    """Fill ``network`` with the same random weights on every machine, scaled so that it stays in FP16's range.

    Convolutions follow He et al. 2015 (fan-out), groups counted: PyTorch's fan-out ignores them. In a depthwise convolution,
    an input channel feeds one output only, so PyTorch's weights would be too small by the root of the number of groups, and a
    ShuffleNetV2 would end in FP16's subnormal numbers. The last batch normalisation of each residual unit starts at 0.2
    instead of 1: with 1, the variance doubles in every unit, and SKNet-101 leaves FP16's range before it is trained.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if module.groups == module.in_channels:
                with torch.no_grad():
                    module.weight.mul_(module.groups**0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01, generator=generator)
            nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, ResidualUnit):
            nn.init.constant_(module.expand.bn.weight, 0.2)

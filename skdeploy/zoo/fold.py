"""The deploy form of a trained network: the same function with fewer operations.

* Batch normalisation in eval mode is affine, so it folds into the convolution before it, or into the 1x1 convolution after it
  (any other kernel pads with zeros that are not the normalisation's).
* A two-branch softmax is a sigmoid: ``exp(p) / (exp(p) + exp(q)) = sigmoid(p - q)``. Both logits are linear in z, so their
  difference is one FC with the difference of the weights.

Both are exact in real arithmetic. Folding is done in float64 and rounded once to the parameters' own dtype.
"""

from __future__ import annotations

import copy
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from skdeploy.zoo.selective_kernel import ConvNormAct, Gate, branch_softmax

Module = TypeVar("Module", bound=nn.Module)


@runtime_checkable
class OwnFold(Protocol):
    """A module that folds more than convolutions and gates. ``absorbed`` are its children that have no counterpart afterwards:
    they went into another, whose output is the same.
    """

    absorbed: tuple[str, ...]

    def fold_own(self) -> None:
        """Called once, on the copy, after its children are folded."""


class FoldedGate(nn.Module):
    """A gate's deploy form: (N, C, 1, 1) -> M - 1 weights of shape (N, C, 1, 1) each, like the Gate it was folded from."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.branches = gate.branches
        self.channels = gate.channels
        self.fc1 = fuse_conv_bn_eval(gate.fc1, gate.bn) if hasattr(gate, "bn") else gate.fc1
        self.squeeze = gate.squeeze
        self.fc2 = gate.fc2
        if self.branches == 2:
            biased = gate.fc2.bias is not None
            self.fc2 = nn.Conv2d(gate.fc1.out_channels, self.channels, 1, bias=biased).to(gate.fc2.weight)
            for name, parameter in gate.fc2.named_parameters():
                first, second = parameter.detach().chunk(2)
                setattr(self.fc2, name, nn.Parameter(first - second))

    def forward(self, statistics: Tensor) -> list[Tensor]:
        logits = self.fc2(self.squeeze(self.fc1(statistics)))
        return [logits.sigmoid()] if self.branches == 2 else branch_softmax(logits, self.branches, self.channels)


def fold(model: Module) -> Module:
    """A copy of ``model`` in its deploy form, in eval mode, with the dtype of its parameters; ``model`` is left as it is.

    What is folded is computed in float64, a part at a time, and rounded once.
    """
    dtype = next(model.parameters()).dtype
    folded = copy.deepcopy(model).eval()
    _fold_children(folded, dtype)
    return folded.requires_grad_(False)


def _fold_children(module: nn.Module, dtype: torch.dtype) -> None:
    for name, child in module.named_children():
        if isinstance(child, ConvNormAct):
            child.double()
            child.conv = fuse_conv_bn_eval(child.conv, child.bn)
            del child.bn
            child.to(dtype)
        elif isinstance(child, Gate):
            setattr(module, name, FoldedGate(child.double()).to(dtype))
        else:
            _fold_children(child, dtype)
    if isinstance(module, OwnFold):
        module.double().fold_own()
        module.to(dtype)


def fold_into_next(bn: nn.BatchNorm2d, conv: nn.Conv2d) -> None:
    """Folds a batch normalisation in eval mode into the biased 1x1 convolution after it.

    ``conv(a * x + b) = (W a) x + (W b + bias)`` with ``a = weight / sqrt(var + eps)`` and ``b = bias - mean * a``.
    """
    assert bn.running_var is not None  # it tracks statistics: it was trained
    assert bn.running_mean is not None
    assert conv.bias is not None
    scale = bn.weight.detach() / torch.sqrt(bn.running_var + bn.eps)
    offset = bn.bias.detach() - bn.running_mean * scale
    weight = conv.weight.detach()
    conv.bias = nn.Parameter(conv.bias.detach() + weight[:, :, 0, 0] @ offset)
    conv.weight = nn.Parameter(weight * scale[None, :, None, None])


def count_parameters(model: nn.Module) -> int:
    """Learnable parameters; batch normalisation's running statistics are not learnable."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of convolutions and fully connected layers for one image (C, H, W), as the paper counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    reference = next(model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *shape, dtype=reference.dtype, device=reference.device))
    return int(counter.get_total_flops()) // 2

"""The selective kernel convolution (Li, Wang, Hu, Yang: "Selective Kernel Networks", CVPR 2019, section 3.1).

*Split*: each of M branches convolves the input with a kernel of its own. *Fuse*: the branches are summed, averaged over
space and squeezed to ``d = max(C / r, L)`` numbers. *Select*: a softmax over the branches, separately for each channel,
weighs them.

Two identities make the operator cheap to deploy without changing what it computes; training uses them too, so there is one
forward:

* The mean is linear, so ``mean(sum_m U_m) = sum_m mean(U_m)``: the sum over branches is never materialised.
* The weights sum to one, so ``sum_m a_m U_m = U_M + sum_{m<M} a_m (U_m - U_M)``: only M - 1 weights are needed, and with two
  branches they are one sigmoid (see ``zoo/fold.py``).

Every tensor here has rank 4 at most, because DLA and some runtimes refuse rank 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from skdeploy.core.architecture import GateSpec, SelectiveKernelSpec
from skdeploy.core.errors import CardError

PAPER_GATE: Final = GateSpec()


class ConvNormAct(nn.Sequential):
    """Convolution, batch normalisation and, if ``activation``, ReLU: (N, C, H, W) -> (N, O, H', W').

    ``padding`` keeps the size at stride 1 for odd kernels, dilation included.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        activation: bool = True,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=bias)
        self.bn = nn.BatchNorm2d(out_channels)
        if activation:
            self.relu = nn.ReLU(inplace=True)


class ShareOfInput(ConvNormAct):
    """A branch that sees the ``index``-th share of the channels only: (N, M * C, H, W) -> (N, O, H', W')."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, index: int, **convolution: Any) -> None:
        super().__init__(in_channels, out_channels, kernel, **convolution)
        self.first, self.end = index * in_channels, (index + 1) * in_channels

    def forward(self, x: Tensor) -> Tensor:
        y = x[:, self.first : self.end]
        for layer in self:
            y = layer(y)
        return y


class Gate(nn.Module):
    """The training form of fuse's FC and select's softmax: (N, C, 1, 1) -> M - 1 weights of shape (N, C, 1, 1) each.

    The weight of the last branch is one minus their sum. The rows of ``fc2`` are branch-major: the first C belong to the
    first branch. Fully connected layers are 1x1 convolutions on a 1x1 map, which needs no reshape. Without ``norm``, the two
    FCs follow each other directly, as some ports have it.
    """

    def __init__(self, channels: int, branches: int, width: int, spec: GateSpec = PAPER_GATE) -> None:
        super().__init__()
        self.branches = branches
        self.channels = channels
        self.fc1 = nn.Conv2d(channels, width, 1, bias=spec.bias)
        self.squeeze: nn.Module = nn.Identity()
        if spec.norm:
            self.bn = nn.BatchNorm2d(width)
            self.squeeze = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(width, channels * branches, 1, bias=spec.select_bias)

    def forward(self, statistics: Tensor) -> list[Tensor]:
        squeezed = self.fc1(statistics)
        if hasattr(self, "bn"):
            squeezed = self.bn(squeezed)
        return branch_softmax(self.fc2(self.squeeze(squeezed)), self.branches, self.channels)


def branch_softmax(logits: Tensor, branches: int, channels: int) -> list[Tensor]:
    """Softmax over branches for each channel: (N, M * C, 1, 1), branch-major -> the first M - 1 weights, (N, C, 1, 1) each.

    The reshape infers the batch, so no batch size is baked into an exported graph.
    """
    weights = logits.reshape(-1, branches, channels, 1).softmax(1)
    return [weights[:, branch].reshape(-1, channels, 1, 1) for branch in range(branches - 1)]


def fuse(branches: Sequence[Tensor]) -> Tensor:
    """The gate's statistics: M maps (N, C, H, W) -> the spatial mean of their sum, (N, C, 1, 1)."""
    total = nn.functional.adaptive_avg_pool2d(branches[0], 1)
    for branch in branches[1:]:
        total = total + nn.functional.adaptive_avg_pool2d(branch, 1)
    return total


def select(branches: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The weighted sum of M maps (N, C, H, W), given the first M - 1 weights (N, C, 1, 1): -> (N, C, H, W)."""
    last = branches[-1]
    selected = last
    for branch, weight in zip(branches[:-1], weights, strict=True):
        selected = selected + weight * (branch - last)
    return selected


def attention(weights: Sequence[Tensor]) -> Tensor:
    """All M weights from the first M - 1, for people to look at: (N, C, 1, 1) each -> (N, M, C), which sums to 1 over M."""
    first = torch.cat([weight.reshape(-1, 1, weight.shape[1]) for weight in weights], dim=1)
    return torch.cat([first, 1 - first.sum(1, keepdim=True)], dim=1)


class SelectiveKernelConv(nn.Module):
    """Split, fuse and select: (N, C, H, W) -> (N, C', H', W').

    ``branches`` are modules of equal output shape. ``gate`` maps the (N, C', 1, 1) statistics to the weights of all branches
    but the last, or is None for the plain sum of the branches: the paper's "no SK" ablation, and the only sense of M = 1,
    where the softmax is 1.
    """

    def __init__(self, branches: Sequence[nn.Module], gate: nn.Module | None) -> None:
        super().__init__()
        if not branches:
            raise ValueError("a selective kernel convolution needs at least one branch")
        if gate is not None and len(branches) == 1:
            raise ValueError("a gate needs at least two branches")
        self.branches = nn.ModuleList(branches)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        maps = [branch(x) for branch in self.branches]
        if self.gate is not None:
            return select(maps, self.gate(fuse(maps)))
        total: Tensor = maps[0]
        for branch in maps[1:]:
            total = total + branch
        return total


def selective_kernel(
    spec: SelectiveKernelSpec, in_channels: int, out_channels: int, stride: int = 1, gate_width: int | None = None
) -> SelectiveKernelConv:
    """Builds the training form that ``spec`` describes: (N, in, H, W) -> (N, out, H / stride, W / stride).

    ``gate_width`` overrides d = max(C / r, L). Raises CardError if groups, or the branches of a split input, do not divide the
    channels.
    """
    count = len(spec.branches)
    if spec.split_input and in_channels % count:
        raise CardError(f"{in_channels} input channels cannot be split among {count} branches")
    share = in_channels // count if spec.split_input else in_channels
    branches: list[nn.Module] = []
    for index, branch in enumerate(spec.branches):
        if share % branch.groups or out_channels % branch.groups:
            raise CardError(
                f"a branch with {branch.groups} groups does not divide {share} -> {out_channels} channels",
                advice="choose middle_channels as a multiple of every branch's groups",
            )
        convolution: dict[str, Any] = branch.model_dump(exclude={"kernel"}) | {"stride": stride}
        branches.append(
            ShareOfInput(share, out_channels, branch.kernel, index=index, **convolution)
            if spec.split_input
            else ConvNormAct(share, out_channels, branch.kernel, **convolution)
        )
    if spec.fuse == "sum" or count == 1:
        return SelectiveKernelConv(branches, None)
    return SelectiveKernelConv(
        branches, Gate(out_channels, count, gate_width or spec.gate_width(out_channels), spec.gate)
    )

"""Facts about a family of networks besides its spec, without importing torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from skdeploy.core.architecture import BranchSpec, DescribedSpec, SKShuffleNetSpec, TrunkSpec

if TYPE_CHECKING:
    from torch import nn

FORWARD: Final = "ReLU, batch norm eps 1e-5 and no softmax at the end"
Words = Callable[[Any], Iterator[tuple[str, str]]]  # of a spec: what a card has, and in words what it says of that


@dataclass(frozen=True)
class Family:
    """``network`` is ``module:class`` of the training form, called with the spec and the input's channels; it may raise
    CardError. ``in_words`` describes a spec. ``forward``: what no key of a card can change.

    Families built from ``zoo.selective_kernel.ConvNormAct`` and ``Gate`` are folded for deployment without code of their own.
    A module that folds more has the method of ``zoo.fold.OwnFold``.
    """

    network: str
    in_words: Words
    forward: str = FORWARD

    def build(self, spec: DescribedSpec, channels: int) -> nn.Module:
        """The training form, with PyTorch's initial weights."""
        module, _, name = self.network.partition(":")
        network: nn.Module = getattr(import_module(module), name)(spec, channels)
        return network


def trunk_in_words(network: TrunkSpec) -> Iterator[tuple[str, str]]:
    """Stem, stages and branches of a residual trunk."""
    stem = network.stem
    deep = "".join(f"{width}, " for width in stem.deep)
    pool = ", Caffe's max pool" if stem.ceil_mode else ", max pool" if stem.max_pool else ""
    yield "stem", f"{stem.kernel}x{stem.kernel} stride {stem.stride}, {deep}{stem.channels} channels{pool}"
    for index, stage in enumerate(network.stages, 1):
        gate = f", gate {stage.gate_width} wide" if stage.gate_width else ""
        channels = f"{stage.middle_channels} -> {stage.out_channels} channels"
        yield f"stage {index}", f"{stage.units} units, {channels}, stride {stage.stride}{gate}"
    for index, branch in enumerate(network.selective_kernel.branches, 1):
        yield f"branch {index}", branch_in_words(branch, f"{branch.groups} group{'s' if branch.groups > 1 else ''}")


def shuffle_in_words(network: SKShuffleNetSpec) -> Iterator[tuple[str, str]]:
    """Stem, stages and branches of a ShuffleNetV2."""
    yield "stem", f"3x3 stride 2, {network.stem_channels} channels, max pool"
    for index, stage in enumerate(network.stages, 1):
        yield f"stage {index}", f"{stage.units} units, {stage.channels} channels, stride 2"
    for index, branch in enumerate(network.selective_kernel.branches, 1):
        yield f"branch {index}", branch_in_words(branch, "depthwise")


def branch_in_words(branch: BranchSpec, groups: str) -> str:
    """Kernel, dilation, groups, and what is not as in the paper."""
    others = ("" if branch.activation else ", no activation") + (", biased" if branch.bias else "")
    return f"{branch.kernel}x{branch.kernel}, dilation {branch.dilation}, {groups}{others}"

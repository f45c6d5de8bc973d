"""Turns a trained CNN's convolutions into selective kernel ones.

The paper's operator (see ``zoo/selective_kernel.py``) is not an add-on: it *replaces* a convolution with a kernel above 1, such
as ResNeXt's grouped 3x3 or ShuffleNetV2's depthwise 3x3, and takes over its stride, groups and padding.

Branch one is the trained convolution itself, with the batch normalisation and the activation that follow it in the model. So
with all attention on branch one, the network computes what it computed before, exactly: that is where fine-tuning starts from.
What follows a convolution is read from its forward with torch.fx; what torch.fx cannot follow is not guessed.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from skdeploy.core.architecture import GateSpec
from skdeploy.core.errors import UsageError
from skdeploy.zoo.selective_kernel import ConvNormAct, Gate, SelectiveKernelConv

Where = str | Callable[[str, nn.Conv2d], bool]

# A convex combination of values in [0, inf) or [0, 6] stays there, so a clamp left behind the selection changes nothing.
CLAMPS: Final[dict[Any, type[nn.Module]]] = {
    nn.ReLU: nn.ReLU,
    nn.ReLU6: nn.ReLU6,
    nn.functional.relu: nn.ReLU,
    nn.functional.relu6: nn.ReLU6,
    torch.relu: nn.ReLU,
    torch.relu_: nn.ReLU,
    "relu": nn.ReLU,
    "relu_": nn.ReLU,
}
# Elementwise and without parameters: each branch can have its own.
ACTIVATIONS: Final = frozenset(
    {nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh}
    | {nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus}
)
# What a forward can raise when its tensors are torch.fx proxies; torch.fx's own TraceError is a ValueError.
UNTRACEABLE: Final = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class ExtraBranch:
    """A branch beside the trained one; None is as in the trained one. ``dilation`` multiplies the trained one's.

    The default is the paper's K5 beside a 3x3: the same kernel and groups, dilation 2.
    """

    dilation: int = 2
    kernel: int | None = None
    groups: int | None = None


DILATED: Final = (ExtraBranch(),)


@dataclass(frozen=True)
class Site:
    """A convolution to replace, by its module name, and what becomes part of its branches.

    ``batch_norm`` and ``activation`` name the modules that move into branch one and leave an ``nn.Identity``; None if there
    is none. ``nonlinearity`` ends each branch; None for branches that end in the batch normalisation. It may be there without
    ``activation``: a ReLU or ReLU6 that the model shares or calls as a function. Then each branch gets one, and the model
    keeps its own, which changes nothing after it.
    """

    convolution: str
    batch_norm: str | None
    activation: str | None
    nonlinearity: nn.Module | None = field(compare=False)

    def __str__(self) -> str:
        moved = " and ".join(name for name in (self.batch_norm, self.activation) if name) or "nothing else"
        return f"{self.convolution} (with {moved}; branches end in {self.nonlinearity or 'no activation'})"


def attach_selective_kernels(
    model: nn.Module,
    where: Where | None = None,
    *,
    branches: Sequence[ExtraBranch] = DILATED,
    reduction: int = 16,
    min_width: int = 32,
    activation: Literal["original", "relu"] = "original",
    first_branch_share: float | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return a copy of ``model`` whose chosen convolutions are selective kernel ones; ``model`` itself does not change.

    ``where`` chooses convolutions with a kernel above 1: a regular expression (``re.search`` on module names), or a predicate
    of (name, convolution). None chooses all but the first one of the network, the stem. ``convolutions_to_replace`` lists
    them beforehand. Inputs and outputs keep their shapes.

    Each replaced convolution keeps its name and becomes a SelectiveKernelConv. Branch one is the trained convolution with its
    own trained batch normalisation and activation. The others are ``branches``, with weights from ``seed`` (He et al. 2015,
    fan-out) and a fresh batch normalisation of the same epsilon and momentum, if the convolution has one. ``reduction`` and
    ``min_width`` are r and L in the width of the gate, max(C / r, L).

    ``activation`` "original" ends each branch as the trained convolution ended, if only in nothing (ShuffleNetV2's depthwise
    ones). "relu" ends each branch in a ReLU, as in the paper; this changes branch one if it had none or another.
    ``first_branch_share`` is the attention, between 0 and 1, that branch one starts with, the same for every image and
    channel. None initialises the gate like any other layer, so it starts undecided.

    Raises UsageError for options out of range, and as ``convolutions_to_replace`` does.
    """
    _check_options(branches, reduction, min_width, activation, first_branch_share)
    sites = convolutions_to_replace(model, where)
    attached = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for site in sites:
        conv = attached.get_submodule(site.convolution)
        bn = attached.get_submodule(site.batch_norm) if site.batch_norm else None
        assert isinstance(conv, nn.Conv2d)  # as convolutions_to_replace found it in the original
        assert bn is None or isinstance(bn, nn.BatchNorm2d)
        ending = nn.ReLU(inplace=True) if activation == "relu" else site.nonlinearity
        with torch.device("cpu"):  # the same weights on every machine
            new = [_new_convolution(site.convolution, conv, branch, bn, generator) for branch in branches]
            gate = Gate(conv.out_channels, 1 + len(new), max(conv.out_channels // reduction, min_width), GateSpec())
            _initialise_gate(gate, first_branch_share, generator)
            norms = [None if bn is None else nn.BatchNorm2d(bn.num_features, bn.eps, bn.momentum) for _ in new]
            fresh = [_branch(branch, norm, ending) for branch, norm in zip(new, norms, strict=True)]
        extra = [module.to(conv.weight.device, conv.weight.dtype) for module in (*fresh, gate)]
        selective = SelectiveKernelConv([_branch(conv, bn, ending), *extra[:-1]], extra[-1])
        attached.set_submodule(site.convolution, selective.train(conv.training))
        for name in (site.batch_norm, site.activation):
            if name:
                attached.set_submodule(name, nn.Identity())
    return attached


def convolutions_to_replace(model: nn.Module, where: Where | None = None) -> list[Site]:
    """List what ``attach_selective_kernels`` would replace, in the order of the model's modules; changes nothing.

    Raises UsageError if ``where`` chooses none (with the nearest candidates), or one that cannot be replaced: transposed, not
    2-D or of another class than ``nn.Conv2d``; an even kernel; padding other than zeros; one used twice or never; a branch of a
    selective kernel convolution already; one called by a forward that torch.fx cannot follow.
    """
    forward = _Forward(model)
    sites = [_site(name, forward) for name in _chosen(model, where, forward)]
    if not sites:
        raise _no_match(model, where)
    return sites


class _Tracer(fx.Tracer):
    """Keeps convolutions of any class as one call each."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


class _Forward:
    """Which module is called where, in the part that torch.fx can trace; calls are in the order that they run in.

    A module whose own forward cannot be followed is left to its children, one by one: then nothing is known of what it calls
    itself, nor of what follows a child's output. ``untraced`` has the reasons.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.calls: dict[str, list[fx.Node]] = {}
        self.untraced: dict[str, str] = {}
        self._prefixes: dict[fx.Graph, str] = {}
        self._trace(model, "")

    def _trace(self, module: nn.Module, prefix: str) -> None:
        if isinstance(module, nn.Conv2d) or not any(isinstance(part, nn.Conv2d) for part in module.modules()):
            return
        if not isinstance(module, nn.ModuleList | nn.ModuleDict):  # these have no forward
            parameters = inspect.signature(module.forward).parameters.values()
            defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
            try:
                graph = _Tracer().trace(module, concrete_args=defaults or None)
            except UNTRACEABLE as error:
                reason = next(iter(str(error).splitlines()), "")
                self.untraced[prefix.removesuffix(".")] = f"{type(error).__name__}: {reason}"
            else:
                self._prefixes[graph] = prefix
                for node in graph.nodes:
                    if node.op == "call_module":
                        self.calls.setdefault(f"{prefix}{node.target}", []).append(node)
                return
        for name, child in module.named_children():
            self._trace(child, f"{prefix}{name}.")

    def module(self, node: fx.Node) -> tuple[str, nn.Module] | None:
        """The module that a node calls, by name; None if it calls something else."""
        if node.op != "call_module":
            return None
        name = f"{self._prefixes[node.graph]}{node.target}"
        return name, self.modules[name]

    def is_used_once(self, name: str) -> bool:
        """Has one name, and one call."""
        names = [other for other, module in self.modules.items() if module is self.modules[name]]
        return len(names) == 1 and len(self.calls.get(name, [])) == 1

    def first_convolution(self) -> str | None:
        """The stem: the first one that runs, or the first one registered where the order of calls is not known."""
        ordered = self.modules if "" in self.untraced else self.calls
        return next((name for name in ordered if isinstance(self.modules[name], nn.Conv2d)), None)


def _chosen(model: nn.Module, where: Where | None, forward: _Forward) -> Iterator[str]:
    """Names of the convolutions with a kernel above 1 that ``where`` asks for."""
    pattern = _compile(where) if isinstance(where, str) else None
    stem = forward.first_convolution()
    for name, module in model.named_modules():
        if not isinstance(module, _ConvNd) or max(module.kernel_size) == 1:
            continue
        if pattern:
            chosen = pattern.search(name) is not None
        elif not isinstance(module, nn.Conv2d):
            chosen = False
        else:
            chosen = where(name, module) if callable(where) else name != stem
        if chosen and (reason := _reason_against(name, module, forward)):
            raise UsageError(
                f"cannot make a selective kernel convolution of {name or 'the model'}: {reason}",
                advice="leave it out: `where` takes a regular expression or a predicate of (name, convolution)",
            )
        if chosen:
            yield name


def _site(name: str, forward: _Forward) -> Site:
    """Follows the one user of each output: convolution, batch normalisation if any, activation if any."""
    batch_norm = activation = nonlinearity = None
    follower = _sole_user(forward.calls[name][0])
    called = forward.module(follower) if follower else None
    if follower and called and _can_move(called[1]) and forward.is_used_once(called[0]):
        batch_norm = called[0]
        follower = _sole_user(follower)
        called = forward.module(follower) if follower else None
    if follower and called and type(called[1]) in ACTIVATIONS and forward.is_used_once(called[0]):
        activation, nonlinearity = called
    elif follower:
        clamp = CLAMPS.get(type(called[1]) if called else follower.target)
        nonlinearity = clamp(inplace=True) if clamp else None
    return Site(name, batch_norm, activation, nonlinearity)


def _sole_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _can_move(module: nn.Module) -> bool:
    """Batch normalisation without running statistics cannot fold later, so it stays where it is."""
    return type(module) is nn.BatchNorm2d and module.running_var is not None


def _branch(conv: nn.Conv2d, bn: nn.BatchNorm2d | None, ending: nn.Module | None) -> nn.Sequential:
    """(N, C, H, W) -> (N, O, H', W'), in the form that ``zoo/fold.py`` knows if there is a batch normalisation to fold."""
    if bn is None:
        branch = nn.Sequential()
        branch.add_module("conv", conv)
    else:
        with torch.device("meta"):  # its own layers are replaced at once
            branch = ConvNormAct(conv.in_channels, conv.out_channels, 1, activation=False)
        branch.conv, branch.bn = conv, bn
    if ending is not None:
        branch.add_module("activation", copy.deepcopy(ending))
    return branch


def _new_convolution(
    name: str, conv: nn.Conv2d, branch: ExtraBranch, bn: nn.BatchNorm2d | None, generator: torch.Generator
) -> nn.Conv2d:
    """A convolution whose output has the size of ``conv``'s: its padding grows by half of what its extent grows by."""
    groups = branch.groups or conv.groups
    if conv.in_channels % groups or conv.out_channels % groups:
        raise UsageError(
            f"{name}: a branch with {groups} groups does not divide {conv.in_channels} -> {conv.out_channels} channels"
        )
    height, width = conv.kernel_size
    kernel = (branch.kernel or height, branch.kernel or width)
    dilation = (branch.dilation * conv.dilation[0], branch.dilation * conv.dilation[1])
    padding = []
    for axis in (0, 1):
        extent = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        own = {"same": extent // 2, "valid": 0}[conv.padding] if isinstance(conv.padding, str) else conv.padding[axis]
        padding.append(int(own) + (dilation[axis] * (kernel[axis] - 1) - extent) // 2)
    if min(padding) < 0:
        raise UsageError(
            f"{name}: a branch of kernel {kernel}, dilation {dilation} covers less than the trained one, and without padding "
            "its output would be larger",
            advice="give the branch a larger kernel or dilation, or leave this convolution out",
        )
    # As in the paper, the shift of a batch normalisation is the only bias.
    bias = conv.bias is not None and bn is None
    stride = (conv.stride[0], conv.stride[1])
    new = nn.Conv2d(
        conv.in_channels, conv.out_channels, kernel, stride, (padding[0], padding[1]), dilation, groups, bias
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new


def _initialise_gate(gate: Gate, share: float | None, generator: torch.Generator) -> None:
    """Undecided, or with the softmax of branch one at ``share`` for any input.

    For the latter the batch normalisation starts with scale 0 and shift 1, so z = 1; the first C rows of the last FC hold
    log(share (M - 1) / (1 - share)) / d, the others 0. The scale has a gradient, so the gate learns to look at its input.
    """
    for layer in (gate.fc1, gate.fc2):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    if share is None:
        return
    nn.init.zeros_(gate.bn.weight)
    nn.init.ones_(gate.bn.bias)
    nn.init.zeros_(gate.fc2.weight)
    lead = math.log(share * (gate.branches - 1) / (1 - share))
    nn.init.constant_(gate.fc2.weight[: gate.channels], lead / gate.fc2.in_channels)


def _check_options(
    branches: Sequence[ExtraBranch], reduction: int, min_width: int, activation: str, share: float | None
) -> None:
    if not branches:
        raise UsageError("no extra branch: a selective kernel convolution needs at least two")
    if reduction < 1 or min_width < 1:
        raise UsageError(f"reduction {reduction} and min_width {min_width} must be at least 1")
    if activation not in ("original", "relu"):
        raise UsageError(f"activation {activation!r}: must be 'original' or 'relu'")
    if share is not None and not 0 < share < 1:
        raise UsageError(
            f"first_branch_share {share}: must be above 0 and below 1",
            advice="with 1, the other branches could not learn",
        )
    for branch in branches:
        if branch.dilation < 1 or (branch.groups is not None and branch.groups < 1):
            raise UsageError(f"{branch}: dilation and groups must be at least 1")
        if branch.kernel is not None and (branch.kernel < 1 or branch.kernel % 2 == 0):
            raise UsageError(f"{branch}: the kernel must be odd, so that all branches have the same size")


def _reason_against(name: str, conv: _ConvNd, forward: _Forward) -> str:
    if not name:
        return "it is the whole model, so there is no parent module to replace it in"
    if isinstance(conv, _ConvTransposeNd):
        return "it is a transposed convolution"
    if type(conv) is not nn.Conv2d:
        return f"it is a {type(conv).__name__}, not a plain nn.Conv2d"
    if any(size % 2 == 0 for size in conv.kernel_size):
        return f"its kernel {conv.kernel_size} is even, so a dilated branch would have another size"
    if conv.padding_mode != "zeros":
        return f"its padding mode is {conv.padding_mode!r}, not zeros"
    parents = [".".join(name.split(".")[:depth]) for depth in range(name.count("."), -1, -1)]
    holder = next((each for each in parents if isinstance(forward.modules[each], SelectiveKernelConv)), None)
    if holder is not None:
        return f"it is already part of {holder or 'the model'}, a selective kernel convolution"
    if forward.is_used_once(name):
        return ""
    if name in forward.calls:
        return "it is used more than once, or under two names, and each use would need its own gate"
    caller = next((each for each in parents if each in forward.untraced), None)
    if caller is not None:
        return f"torch.fx cannot trace the forward of {caller or 'the model'} around it: {forward.untraced[caller]}"
    return "the model's forward does not call it"


def _compile(where: str) -> re.Pattern[str]:
    try:
        return re.compile(where)
    except re.error as error:
        raise UsageError(f"where={where!r} is not a regular expression: {error}") from error


def _no_match(model: nn.Module, where: Where | None) -> UsageError:
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    candidates = [name for name, module in convolutions.items() if max(module.kernel_size) > 1]
    if not candidates:
        return UsageError("the model has no convolution with a kernel above 1")
    if where is None:
        return UsageError(
            f"the stem {candidates[0]} is the only convolution with a kernel above 1", advice="choose it with `where`"
        )
    if not isinstance(where, str):
        return UsageError("where chooses no convolution", advice=f"candidates: {', '.join(candidates[:5])}")
    ones = [name for name in convolutions if name not in candidates and re.search(where, name)]
    nearest = difflib.get_close_matches(where, candidates, n=5, cutoff=0.3) or candidates[:5]
    problem = f"matches only convolutions of kernel 1, such as {ones[0]}" if ones else "matches no convolution"
    return UsageError(f"where={where!r} {problem}", advice=f"nearest candidates: {', '.join(nearest)}")

"""From a checkpoint's shapes to the network that they belong to, and where that differs from a card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from skdeploy.architecture import (
    BranchSpec,
    GateSpec,
    LinearSKNetSpec,
    NetworkSpec,
    SelectiveKernelSpec,
    SKNetSpec,
    SKResNetSpec,
    StageSpec,
    StemSpec,
    TrunkSpec,
)
from skdeploy.checkpoints.rules import Implied
from skdeploy.errors import WeightsError

Shapes = Mapping[str, tuple[int, ...]]

# What a port may have in its own way without being another network: a checkpoint overrules the card there, and it is said.
ADAPTABLE: Final = ("selective_kernel.gate.", "stem.ceil_mode", "gate_width")


def infer(shapes: Shapes, implied: Implied, path: Path) -> tuple[NetworkSpec, int]:
    """The network of canonical ``shapes``, and its input channels. Raises WeightsError if they make no whole network."""
    _check_branches(shapes, implied, path)
    try:
        return _infer(shapes, implied)
    except KeyError as error:
        raise WeightsError(
            f"{path} is not a whole network: there is nothing for {error.args[0]}",
            advice="the file was cut, or filtered",
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise WeightsError(
            f"the shapes in {path} are no network's: {'.'.join(map(str, first['loc'])) or 'branches'}: {first['msg']}",
            advice="the file is damaged, or holds another network than its keys say",
        ) from error


def _check_branches(shapes: Shapes, implied: Implied, path: Path) -> None:
    count = _count(shapes, "stages.0.0.sk.branches.")
    if count > len(implied.dilations):
        raise WeightsError(
            f"{path} has {count} branches, and nothing tells their dilations: this layout has up to {len(implied.dilations)}",
            advice="write a card, and save the weights under skdeploy's own keys",
        )


def _infer(shapes: Shapes, implied: Implied) -> tuple[NetworkSpec, int]:
    deep = tuple(shapes[f"stem.{i}.conv.weight"][0] for i in range(_count(shapes, "stem.")))
    first = shapes["stem.0.conv.weight" if deep else "stem.conv.weight"]
    last = shapes[f"stem.{len(deep) - 1}.conv.weight"] if deep else first
    stem = StemSpec(
        channels=last[0],
        kernel=last[2],
        stride=implied.stem_stride,
        max_pool=implied.max_pool,
        ceil_mode=implied.ceil_mode,
        deep=deep[:-1],
    )
    stages = []
    for index in range(_count(shapes, "stages.")):
        stage = f"stages.{index}."
        gate = shapes.get(f"{stage}0.sk.gate.fc1.weight")
        stages.append(
            StageSpec(
                units=_count(shapes, stage),
                middle_channels=shapes[f"{stage}0.sk.branches.0.conv.weight"][0],
                out_channels=shapes[f"{stage}0.expand.conv.weight"][0],
                stride=implied.strides[index] if index < len(implied.strides) else 2,
                gate_width=gate[0] if gate else None,
            )
        )
    basic = "stages.0.0.reduce.conv.weight" not in shapes
    seen = stem.channels if basic else stages[0].middle_channels
    common = {
        "stem": stem,
        "stages": tuple(stages),
        "selective_kernel": _selective_kernel(shapes, implied, seen),
        "classes": shapes["classifier.weight"][0],
    }
    return _family(implied, basic, common), first[1]


def _family(implied: Implied, basic: bool, common: dict[str, Any]) -> NetworkSpec:
    if implied.family == "linear_sknet":
        return LinearSKNetSpec(**common)
    if not basic and implied.shortcut == "conv":
        return SKNetSpec(**common)  # a bottleneck ResNet of selective kernels and an SKNet are one network
    return SKResNetSpec(block="basic" if basic else "bottleneck", shortcut=implied.shortcut, **common)


def _selective_kernel(shapes: Shapes, implied: Implied, seen: int) -> SelectiveKernelSpec:
    """``seen``: the channels that come into the first selective kernel convolution."""
    unit = "stages.0.0.sk."
    count = _count(shapes, f"{unit}branches.")
    weights = [shapes[f"{unit}branches.{branch}.conv.weight"] for branch in range(count)]
    split = implied.split_input and count > 1 and weights[0][1] * count == seen
    share = seen // count if split else seen
    gated = f"{unit}gate.fc1.weight" in shapes
    return SelectiveKernelSpec(
        branches=tuple(
            BranchSpec(
                kernel=weight[2],
                dilation=implied.dilations[branch] if weight[2] == 3 else 1,
                groups=share // weight[1],
                bias=f"{unit}branches.{branch}.conv.bias" in shapes,
            )
            for branch, weight in enumerate(weights)
        ),
        fuse="attention" if gated else "sum",
        gate=GateSpec(
            norm=not gated or f"{unit}gate.bn.weight" in shapes,
            bias=f"{unit}gate.fc1.bias" in shapes,
            select_bias=f"{unit}gate.fc2.bias" in shapes,
        ),
        split_input=split,
    )


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbered children follow ``prefix``."""
    children = {key[len(prefix) :].split(".")[0] for key in shapes if key.startswith(prefix)}
    return len({child for child in children if child.isdigit()})


def differences(card: NetworkSpec, found: NetworkSpec) -> list[tuple[str, Any, Any]]:
    """Where two networks differ: (key, the card's value, the found one), by what they are, not by how they are written."""
    return list(_differ("", resolved(card), resolved(found)))


def is_adaptable(key: str) -> bool:
    """Whether a checkpoint may overrule the card there."""
    return any(key.startswith(prefix) or key.endswith(prefix) for prefix in ADAPTABLE)


def resolved(network: NetworkSpec) -> dict[str, Any]:
    """A network in one normal form: gate widths written out, equal families under one name."""
    content = network.model_dump(mode="json")
    if isinstance(network, TrunkSpec):
        kernels = network.selective_kernel
        gated = kernels.fuse == "attention" and len(kernels.branches) > 1
        for stage, row in zip(network.stages, content["stages"], strict=True):
            row["gate_width"] = (stage.gate_width or kernels.gate_width(stage.middle_channels)) if gated else None
        del content["selective_kernel"]["reduction"], content["selective_kernel"]["min_width"]
        if not gated:
            content["selective_kernel"]["fuse"] = "sum"
            content["selective_kernel"]["gate"] = None
    if isinstance(network, SKResNetSpec) and network.block == "bottleneck" and network.shortcut == "conv":
        del content["block"], content["shortcut"]
        content["family"] = "sknet"
    return content


def _differ(key: str, card: Any, found: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(card, dict) and isinstance(found, dict):
        names = [*card, *(name for name in found if name not in card)]
        for name in sorted(names, key=lambda name: name != "family"):  # the family first: it says most
            yield from _differ(f"{key}.{name}" if key else name, card.get(name), found.get(name))
    elif isinstance(card, list) and isinstance(found, list) and len(card) == len(found):
        for index, (one, other) in enumerate(zip(card, found, strict=True)):
            yield from _differ(f"{key}.{index}", one, other)
    elif card != found:
        yield key, card, found

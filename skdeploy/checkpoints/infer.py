"""From a checkpoint's shapes to the network that they belong to, and where that differs from a card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from skdeploy.checkpoints.rules import Implied
from skdeploy.core.architecture import (
    SPECS,
    BranchSpec,
    DescribedSpec,
    GateSpec,
    SelectiveKernelSpec,
    SKNetSpec,
    SKResNetSpec,
    StageSpec,
    StemSpec,
    TrunkSpec,
)
from skdeploy.core.errors import WeightsError, first_problem
from skdeploy.core.listing import some

Shapes = Mapping[str, tuple[int, ...]]
Change = dict[str, Any]

# What a port or a fine-tuned copy may have in its own way without being another network: a checkpoint overrules the card
# there, and it is said.
ADAPTABLE: Final = ("selective_kernel.gate.", "stem.ceil_mode", "gate_width", "classes")


def infer(shapes: Shapes, implied: Implied, path: Path, left_out: Sequence[str] = ()) -> tuple[DescribedSpec, int]:
    """The network of canonical ``shapes``, and its input channels. Raises WeightsError if they make no whole network.

    ``left_out``: what the file has besides, under keys of no layout. A missing tensor may be among it.
    """
    _check_branches(shapes, implied, path)
    try:
        return _infer(shapes, implied)
    except KeyError as error:
        raise WeightsError(
            f"{path} is not a whole network: {error.args[0]} is missing",
            advice=f"if it is one of {some(left_out, 10)}, save it under the key of its layout, with the others"
            if left_out
            else "the file was cut off, or some of its tensors were left out",
        ) from error
    except ValidationError as error:
        raise WeightsError(
            f"the shapes in {path} do not make a network: {first_problem(error, 'branches')}",
            advice="the file is damaged, or its keys belong to another network",
        ) from error


def _check_branches(shapes: Shapes, implied: Implied, path: Path) -> None:
    count = _count(shapes, "stages.0.0.sk.branches.")
    if count > len(implied.dilations):
        raise WeightsError(
            f"{path} has {count} branches, but this layout defines dilations for at most {len(implied.dilations)}",
            advice="write a card with the dilations and give it: `convert --card`, or export the card with --weights",
        )


def _infer(shapes: Shapes, implied: Implied) -> tuple[DescribedSpec, int]:
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
                stride=_stride(implied, index),
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
    return _family(shapes, implied, basic, common), first[1]


def _family(shapes: Shapes, implied: Implied, basic: bool, common: dict[str, Any]) -> TrunkSpec:
    spec = SPECS[implied.family]
    if issubclass(spec, TrunkSpec) and not issubclass(spec, SKResNetSpec | SKNetSpec):
        return spec.of_shapes(shapes, **common)
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


def differences(card: DescribedSpec, found: DescribedSpec) -> list[tuple[str, Any, Any]]:
    """Where two networks differ: (key, the card's value, the found one), by what they are, not by how they are written."""
    return list(_differ("", card.normal_form(), found.normal_form()))


def implied_by_card(card: DescribedSpec, layout: Implied) -> Implied:
    """The layout's facts, with those of the card in place of what decides how shapes are read."""
    if not isinstance(card, TrunkSpec):
        return layout
    # The keys tell a pooled shortcut from a plain one, not which pool.
    pooled = "conv" not in (card.shortcuts, layout.shortcut)
    dilations = tuple(branch.dilation for branch in card.selective_kernel.branches)
    return replace(
        layout,
        dilations=dilations + layout.dilations[len(dilations) :],
        split_input=card.selective_kernel.split_input,
        shortcut=card.shortcuts if pooled else layout.shortcut,
    )


def with_unseen(found: DescribedSpec, card: DescribedSpec) -> DescribedSpec:
    """``found`` with the card's values wherever no tensor shows one: strides, pools, dilations, activations.

    Where the card leaves ``ceil_mode`` out, the layout's stays.
    """
    if not isinstance(found, TrunkSpec) or not isinstance(card, TrunkSpec):
        return found
    said = {"stride", "max_pool"} | ({"ceil_mode"} & card.stem.model_fields_set)
    branches = [branch.model_dump(include={"dilation", "activation"}) for branch in card.selective_kernel.branches]
    strides = [{"stride": stage.stride} for stage in card.stages]
    return _changed(found, card.stem.model_dump(include=said), strides, branches)


def with_layout(network: DescribedSpec, implied: Implied) -> DescribedSpec:
    """``network`` with the strides, the pool and the dilations that the layout's own networks have."""
    if not isinstance(network, TrunkSpec):
        return network
    stem = {"stride": implied.stem_stride, "max_pool": implied.max_pool, "ceil_mode": implied.ceil_mode}
    strides = [{"stride": _stride(implied, index)} for index in range(len(network.stages))]
    kernels = zip(network.selective_kernel.branches, implied.dilations, strict=False)
    branches = [{"dilation": dilation} if branch.kernel == 3 else {} for branch, dilation in kernels]
    return _changed(network, stem, strides, branches)


def _changed(network: TrunkSpec, stem: Change, stages: list[Change], branches: list[Change]) -> TrunkSpec:
    """``network`` with other values in its stem, and in its first stages and branches."""
    kernels = network.selective_kernel

    def each(specs: tuple[Any, ...], changes: list[Change]) -> tuple[Any, ...]:
        changed = (spec.model_copy(update=change) for spec, change in zip(specs, changes, strict=False))
        return (*changed, *specs[len(changes) :])

    return network.model_copy(
        update={
            "stem": network.stem.model_copy(update=stem),
            "stages": each(network.stages, stages),
            "selective_kernel": kernels.model_copy(update={"branches": each(kernels.branches, branches)}),
        }
    )


def _stride(implied: Implied, stage: int) -> int:
    return implied.strides[stage] if stage < len(implied.strides) else 2


def is_adaptable(key: str) -> bool:
    """Whether a checkpoint may overrule the card there."""
    return any(key.startswith(prefix) or key.endswith(prefix) for prefix in ADAPTABLE)


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

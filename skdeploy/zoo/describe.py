"""A card in words, for people: the content of ``skdeploy models`` and of docs/zoo.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from skdeploy.core.architecture import GraphSpec, ModuleSpec, NetworkSpec, SKShuffleNetSpec
from skdeploy.core.errors import DependencyError
from skdeploy.core.packages import EXTRAS, require
from skdeploy.core.spec import ModelSpec
from skdeploy.zoo.assumed import assumptions_of

FEW_LABELS: Final = 20  # more are in the card itself


def describe(spec: ModelSpec) -> dict[str, str]:
    """Everything a card says of its network, whatever differs from the paper's named, and what is counted from it."""
    network, preprocess = spec.network, spec.preprocess
    own = isinstance(network, GraphSpec | ModuleSpec)
    assumed = "; ".join(f"{each.text} (from {each.source})" for each in assumptions_of(spec))
    return {
        "about": spec.summary,
        **(_interface(network) if isinstance(network, GraphSpec | ModuleSpec) else _network(network)),
        "input": "x".join(map(str, spec.input.shape)),
        "preprocess": f"resize {preprocess.resize} {preprocess.interpolation}, mean {preprocess.mean}, std {preprocess.std}"
        + (", turned upright by EXIF" if preprocess.exif == "apply" else ""),
        **({"labels": _labels(spec.labels)} if spec.labels else {}),
        **({} if own else _trained(spec)),
        "source": f"{spec.source.paper}, {spec.source.url}",
        "licence": spec.source.licence,
        **{f"tolerance {precision}": str(tolerance) for precision, tolerance in spec.tolerance.items()},
        **({"assumed": assumed} if assumed else {}),
    }


def _labels(labels: tuple[str, ...]) -> str:
    return ", ".join(labels) if len(labels) <= FEW_LABELS else f"{len(labels)}: {labels[0]} to {labels[-1]}"


def _interface(network: GraphSpec | ModuleSpec) -> dict[str, str]:
    where = "an ONNX file" if isinstance(network, GraphSpec) else network.factory or "a function of your own"
    return {"family": f"{network.family}, {network.classes} classes: the network is in {where}"}


def _network(network: NetworkSpec) -> dict[str, str]:
    kernels = network.selective_kernel
    return {
        "family": f"{network.family}, {network.classes} classes"
        + _extras(network, "stem", "stages", "selective_kernel"),
        "stem": _stem(network),
        **{f"stage {index + 1}": text for index, text in enumerate(_stages(network))},
        "selective kernel": f"M={len(kernels.branches)}, {kernels.fuse}, r={kernels.reduction}, L={kernels.min_width}"
        + (", each branch sees its share of the input" if kernels.split_input else "")
        + _changed(kernels.gate.model_dump(exclude_defaults=True)),
        **{f"branch {index + 1}": text for index, text in enumerate(_branches(network))},
    }


def _trained(spec: ModelSpec) -> dict[str, str]:
    parameters, macs = _counted(spec)
    return {
        "parameters": parameters,
        "MACs": macs,
        "top-1 published": accuracy_text(spec) or "none",
        "weights": weights_text(spec),
    }


def _counted(spec: ModelSpec) -> tuple[str, str]:
    """Parameters and MACs, counted in the network itself; where there is no torch to build it, as published, and said so."""
    reference = spec.reference
    try:
        require("torch", extra=EXTRAS)
    except DependencyError:
        return _published(reference.parameters), _published(reference.macs)
    from skdeploy.zoo.build import build_meta
    from skdeploy.zoo.fold import count_macs, count_parameters

    built = build_meta(spec)
    parameters, macs = count_parameters(built), count_macs(built, spec.input.shape)
    return (
        f"{parameters:,} learnable" + _unless(reference.parameters, parameters),
        f"{macs:,} for one image" + _unless(reference.macs, macs),
    )


def _published(count: int | None) -> str:
    return "not counted: no torch here" if count is None else f"{count:,} as published, not counted: no torch here"


def accuracy_text(spec: ModelSpec) -> str:
    """All published top-1 accuracies in per cent, with the input size where there are several."""
    reference = spec.reference
    found = [] if reference.top1_accuracy is None else [f"{reference.top1_accuracy:.2f}"]
    for size, error in ((224, reference.top1_error_224), (320, reference.top1_error_320)):
        if error is not None:
            found.append(f"{100 - error:.2f} ({size})")
    return ", ".join(found)


def count_text(count: int | None) -> str:
    """4.46 G, 42.1 M, or nothing."""
    if count is None:
        return ""
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


def weights_text(spec: ModelSpec) -> str:
    """Where the card's own weights are."""
    if spec.weights is None:
        return "none: give --weights, or export random ones"
    return f"{spec.weights.file}, sha256 {spec.weights.sha256[:12]}"


def _stem(network: NetworkSpec) -> str:
    if isinstance(network, SKShuffleNetSpec):
        return f"3x3 stride 2, {network.stem_channels} channels, max pool"
    stem = network.stem
    deep = "".join(f"{width}, " for width in stem.deep)
    pool = ", Caffe's max pool" if stem.ceil_mode else ", max pool" if stem.max_pool else ""
    return f"{stem.kernel}x{stem.kernel} stride {stem.stride}, {deep}{stem.channels} channels{pool}"


def _stages(network: NetworkSpec) -> list[str]:
    if isinstance(network, SKShuffleNetSpec):
        return [f"{stage.units} units, {stage.channels} channels, stride 2" for stage in network.stages]
    return [
        f"{stage.units} units, {stage.middle_channels} -> {stage.out_channels} channels, stride {stage.stride}"
        + (f", gate {stage.gate_width} wide" if stage.gate_width else "")
        for stage in network.stages
    ]


def _branches(network: NetworkSpec) -> list[str]:
    depthwise = isinstance(network, SKShuffleNetSpec)
    return [
        f"{branch.kernel}x{branch.kernel}, dilation {branch.dilation}, "
        + ("depthwise" if depthwise else f"{branch.groups} group{'s' if branch.groups > 1 else ''}")
        + ("" if branch.activation else ", no activation")
        + (", biased" if branch.bias else "")
        for branch in network.selective_kernel.branches
    ]


def _extras(network: NetworkSpec, *described: str) -> str:
    """What a family has besides stem, stages and kernels."""
    skipped = {*described, "family", "classes"}
    return _changed({key: value for key, value in network.model_dump().items() if key not in skipped})


def _changed(values: Mapping[str, Any]) -> str:
    return "".join(f", {key.replace('_', ' ')} {value}" for key, value in values.items())


def _unless(published: int | None, counted: int) -> str:
    return f" (published: {published:,})" if published is not None and published != counted else ""

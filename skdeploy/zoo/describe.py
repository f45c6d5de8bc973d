"""A card in words, for people: the content of ``skdeploy models`` and of docs/reference/zoo.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from skdeploy.core.architecture import DescribedSpec, ModuleSpec, NetworkSpec
from skdeploy.core.errors import DependencyError
from skdeploy.core.packages import EXTRAS, require
from skdeploy.core.spec import InputSpec, ModelSpec, Preprocess
from skdeploy.zoo import FAMILIES
from skdeploy.zoo.assumed import assumptions_of

FEW_LABELS: Final = 20  # more are in the card itself


def describe(spec: ModelSpec) -> dict[str, str]:
    """Everything a card says of its network, whatever differs from the paper's named, and what is counted from it."""
    network = spec.network
    assumed = "; ".join(f"{each.text} (from {each.source})" for each in assumptions_of(spec))
    return {
        "about": spec.summary,
        **(_network(network) if isinstance(network, DescribedSpec) else _interface(network)),
        **(_image(spec.input, spec.preprocess) if spec.takes_images else _arrays(spec)),
        **({"labels": _labels(spec.labels)} if spec.labels else {}),
        **(_trained(spec) if isinstance(network, DescribedSpec) else {}),
        "source": f"{spec.source.paper}, {spec.source.url}",
        "licence": spec.source.licence,
        **{
            f"tolerance {precision}": " ".join(f"{name}={limit}" for name, limit in tolerance if limit is not None)
            for precision, tolerance in spec.tolerance.items()
        },
        **({"assumed": assumed} if assumed else {}),
    }


def _image(image: InputSpec, preprocess: Preprocess) -> dict[str, str]:
    resized = "not resized" if preprocess.resize is None else f"resize {preprocess.resize} {preprocess.interpolation}"
    return {
        "input": "x".join(map(str, image.shape)),
        "preprocess": f"{resized}, mean {preprocess.mean}, std {preprocess.std}"
        + (", turned upright by EXIF" if preprocess.exif == "apply" else ""),
    }


def _arrays(spec: ModelSpec) -> dict[str, str]:
    sizes = {
        f"size {name}": f"{size.usual}, from {size.smallest} to {size.largest} in steps of {size.multiple}"
        for name, size in spec.sizes.items()
    }
    return {"input": spec.shown_inputs, **sizes}


def _labels(labels: tuple[str, ...]) -> str:
    return ", ".join(labels) if len(labels) <= FEW_LABELS else f"{len(labels)}: {labels[0]} to {labels[-1]}"


def _interface(network: NetworkSpec) -> dict[str, str]:
    where = (network.factory or "a function of your own") if isinstance(network, ModuleSpec) else "an ONNX file"
    return {"family": f"{network.family}, {network.classes} classes: the network is in {where}"}


def _network(network: DescribedSpec) -> dict[str, str]:
    kernels, words = network.selective_kernel, dict(FAMILIES[network.family].in_words(network))
    fused = f"M={len(kernels.branches)}, {kernels.fuse}, r={kernels.reduction}, L={kernels.min_width}"
    split = ", each branch sees its share of the input" if kernels.split_input else ""
    return {
        "family": f"{network.family}, {network.classes} classes"
        + _extras(network, "stem", "stages", "selective_kernel"),
        **{name: text for name, text in words.items() if not name.startswith("branch")},
        "selective kernel": fused + split + _changed(kernels.gate.model_dump(exclude_defaults=True)),
        **{name: text for name, text in words.items() if name.startswith("branch")},
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


def _extras(network: NetworkSpec, *described: str) -> str:
    """Other properties of a family than stem, stages and kernels."""
    skipped = {*described, "family", "classes"}
    return _changed({key: value for key, value in network.model_dump().items() if key not in skipped})


def _changed(values: Mapping[str, Any]) -> str:
    return "".join(f", {key.replace('_', ' ')} {value}" for key, value in values.items())


def _unless(published: int | None, counted: int) -> str:
    return f" (published: {published:,})" if published is not None and published != counted else ""

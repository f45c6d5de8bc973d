"""Values of a card that skdeploy filled in: recorded in the card until a person has confirmed them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, Literal

from skdeploy.core.architecture import DescribedSpec, NetworkSpec, TrunkSpec
from skdeploy.core.errors import UsageError
from skdeploy.core.spec import Assumed, AssumedArchitecture, AssumedPreprocessing, Assumption, ModelSpec
from skdeploy.zoo import FAMILIES

Settled = Literal["architecture", "size", "preprocessing"]

# Of torchvision and timm, by the number of channels: those of RGB are published, gray's is their mean.
IMAGENET_MEAN: Final = {3: (0.485, 0.456, 0.406), 1: (0.449,)}
IMAGENET_STD: Final = {3: (0.229, 0.224, 0.225), 1: (0.226,)}
RESTORATION: Final = "as most restoration networks take them"
CORRECT: Final = (
    "write the true values into a card (`skdeploy init MODEL` makes one; or correct [assumed] in the card) and export with "
    "--card"
)
FROM_CARD: Final = "correct the card and export again from it"
CONFIRM: Final = f"{CORRECT}; or confirm these with --assume-imagenet"
COMMENT: Final = (
    "# skdeploy filled in these values: the weights do not show them. Correct a value above, and it no longer "
    "counts as\n# assumed. Delete the line of a value that is right, or the whole table once you have checked "
    "all of them.\n"
)


def architecture_of(network: NetworkSpec, source: str) -> AssumedArchitecture | None:
    """Every value of ``network`` that its weights do not show; None for a family that has none such."""
    if not isinstance(network, TrunkSpec):
        return None
    shown = _unseen(network)
    plain = shown["shortcut"] == "conv"
    return AssumedArchitecture(
        source=source,
        forward=FAMILIES[network.family].forward,
        **{
            **shown,
            "ceil_mode": shown["ceil_mode"] if network.stem.max_pool else None,
            "shortcut": None if plain else shown["shortcut"],
            "split_input": True if shown["split_input"] else None,
        },
    )


def preprocessing_of(spec: ModelSpec, source: str) -> AssumedPreprocessing:
    """The input size and the whole preprocessing of ``spec``."""
    return AssumedPreprocessing(source=source, **_prepared(spec))


def assumptions_of(spec: ModelSpec) -> tuple[Assumption, ...]:
    """List what is still assumed of a card, a phrase for each group of values.

    A value that differs from the one in ``[assumed]`` has been corrected since, by a person or an option.
    """
    assumed, found = spec.assumed, []
    if assumed.architecture is not None:
        holds = _holding(assumed.architecture, _unseen(spec.network))
        forward = [] if assumed.architecture.forward is None else [assumed.architecture.forward]
        source = assumed.architecture.source
        texts = [*_architecture(spec, holds), *forward]
        found += [Assumption(about="architecture", text=text, source=source) for text in texts]
    if assumed.preprocessing is not None:
        holds = _holding(assumed.preprocessing, _prepared(spec))
        source = assumed.preprocessing.source
        texts = list(_preprocessing(spec, holds))
        found += [Assumption(about="preprocessing", text=text, source=source) for text in texts]
    return tuple(found)


def confirmed(spec: ModelSpec, assume_imagenet: bool, subject: str) -> ModelSpec:
    """The spec once ``--assume-imagenet`` has been given: its preprocessing is not assumed any more, the user said it.

    Raises UsageError where nothing is assumed, or values that are not ImageNet's.
    """
    if not assume_imagenet:
        return spec
    assumed, prepared = spec.assumed.preprocessing, _prepared(spec)
    holds = set() if assumed is None else _holding(assumed, prepared)
    if assumed is None or not holds:
        raise UsageError(
            f"--assume-imagenet is not needed: the preprocessing of {subject} is known from a card or from you",
            advice="leave the option out",
        )
    if other := _unlike_imagenet(spec):
        shown = " and ".join(f"{name} {_numbers(prepared[name])}" for name in other)
        raise UsageError(
            f"--assume-imagenet does not fit {subject}: its assumed {shown} (from {assumed.source}) is not ImageNet's",
            advice="export from a card with the true values, and delete those that are right from its "
            "[assumed.preprocessing]",
        )
    return spec.model_copy(update={"assumed": spec.assumed.model_copy(update={"preprocessing": None})})


def _of_restoration(spec: ModelSpec) -> bool:
    assumed = spec.assumed.preprocessing
    return assumed is not None and assumed.source == RESTORATION


def _unlike_imagenet(spec: ModelSpec) -> list[str]:
    """Those of mean and std that are assumed, and not ImageNet's for that number of channels."""
    assumed, prepared = spec.assumed.preprocessing, _prepared(spec)
    known = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    holds = set() if assumed is None else _holding(assumed, prepared)
    return [name for name in known if name in holds and prepared[name] != known[name].get(spec.input.channels)]


def require_preprocessing(
    subjects: Mapping[str, ModelSpec], assume_imagenet: bool = False, *, advice: str = ""
) -> tuple[str, ...]:
    """Return warnings for accuracy that is measured with unconfirmed preprocessing.

    ``subjects``: each network that is run, by the name that the user gave. One confirmation serves all of them. A checkpoint
    of a known family is measured with the preprocessing that its family is trained with, and a warning says so. So is an
    image-to-image network, whose pairs show whether 0..1 is right (``accuracy/untouched.py``). Nothing is known of another ONNX
    file or module: raises UsageError, and as ``confirmed``. ``advice`` is said in place of its own.
    """
    assuming = {
        subject: "; ".join(texts)
        for subject, spec in subjects.items()
        if (texts := [a.text for a in assumptions_of(spec) if a.about == "preprocessing"])
    }
    if assume_imagenet:
        for subject in assuming or subjects:
            confirmed(subjects[subject], assume_imagenet, subject)
        return ()
    unknown = [
        subject
        for subject in assuming
        if not isinstance(subjects[subject].network, DescribedSpec) and not _of_restoration(subjects[subject])
    ]
    if unknown:
        said = ". ".join(f"Assumed for {subject}: {assuming[subject]}" for subject in unknown)
        own = CORRECT if any(_unlike_imagenet(subjects[subject]) for subject in unknown) else CONFIRM
        raise UsageError(f"accuracy needs confirmed preprocessing. {said}", advice=advice or own)
    return tuple(
        f"accuracy of {subject} is measured with assumed preprocessing: {texts}. If the FP32 accuracy is not what you "
        f"measured in training, {CORRECT if _of_restoration(subjects[subject]) else FROM_CARD}"
        for subject, texts in assuming.items()
    )


def settled(spec: ModelSpec, by: Collection[Settled]) -> ModelSpec:
    """The spec without the assumptions that a proof has settled."""
    assumed = spec.assumed
    preprocessing = None if "preprocessing" in by else assumed.preprocessing
    if preprocessing is not None and "size" in by:
        preprocessing = preprocessing.model_copy(update={"size": None})
    left = Assumed(architecture=None if "architecture" in by else assumed.architecture, preprocessing=preprocessing)
    return spec.model_copy(update={"assumed": left})


def _unseen(network: NetworkSpec) -> dict[str, Any]:
    """The values that no tensor shows, under the names that ``[assumed.architecture]`` gives them."""
    if not isinstance(network, TrunkSpec):
        return {}
    return {
        "stem_stride": network.stem.stride,
        "max_pool": network.stem.max_pool,
        "ceil_mode": network.stem.ceil_mode,
        "stage_strides": tuple(stage.stride for stage in network.stages),
        "dilations": tuple(branch.dilation for branch in network.selective_kernel.branches),
        "shortcut": network.shortcuts,
        "split_input": network.selective_kernel.split_input,
    }


def _prepared(spec: ModelSpec) -> dict[str, Any]:
    preprocess = spec.preprocess
    return {
        "size": (spec.input.height, spec.input.width),
        "interpolation": preprocess.interpolation,
        "mean": preprocess.mean,
        "std": preprocess.std,
    }


def _holding(assumed: AssumedArchitecture | AssumedPreprocessing, now: dict[str, Any]) -> set[str]:
    """The names of the assumed values that are the card's still."""
    return {name for name, value in now.items() if value is not None and getattr(assumed, name) == value}


def _architecture(spec: ModelSpec, holds: set[str]) -> Iterator[str]:
    network = spec.network
    if not isinstance(network, TrunkSpec):
        return
    stem = network.stem
    rounded = ", rounded up" if stem.ceil_mode and "ceil_mode" in holds else ""
    parts = {
        "stem_stride": f"stride {stem.stride} stem",
        "max_pool": f"3x3 max pool{rounded}" if stem.max_pool else "no max pool",
    }
    if said := [text for name, text in parts.items() if name in holds]:
        yield " and ".join(said)
    elif rounded:
        yield "max pool rounded up"
    if "stage_strides" in holds:
        yield f"stage strides {', '.join(str(stage.stride) for stage in network.stages)}"
    if "dilations" in holds:
        yield f"branch dilations {', '.join(str(b.dilation) for b in network.selective_kernel.branches)}"
    if "shortcut" in holds:
        padding = ", zero-padded," if network.shortcuts == "padded_avg_pool" else ""
        yield f"2x2 average pool{padding} in the shortcuts"
    if "split_input" in holds:
        yield "input channels shared out among the branches"


def _preprocessing(spec: ModelSpec, holds: set[str]) -> Iterator[str]:
    if "size" in holds:
        yield f"{spec.input.height} x {spec.input.width} input"
    preprocess = spec.preprocess
    if _of_restoration(spec) and {"mean", "std"} <= holds and (preprocess.mean, preprocess.std) == _zero_to_one(spec):
        what = "images" if preprocess.resize is None else "pairs"  # older bundles resize images without a target
        yield f"pixels of 0 to 1, {what} not resized" + (", RGB order" if spec.input.channels == 3 else "")
        return
    resized = f"shorter side to {preprocess.resize} ({preprocess.interpolation})"
    parts = {
        "interpolation": f"{resized if preprocess.resize else 'not resized'} and centre crop",
        "mean": f"mean {_numbers(preprocess.mean)}",
        "std": f"std {_numbers(preprocess.std)}",
    }
    said = [text for name, text in parts.items() if name in holds]
    if said:
        yield ", ".join([*said, *(["RGB order"] if spec.input.channels == 3 and "mean" in holds else [])])


def _zero_to_one(spec: ModelSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return (0.0,) * spec.input.channels, (1.0,) * spec.input.channels


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)

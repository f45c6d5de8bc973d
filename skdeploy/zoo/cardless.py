"""A spec for a network without a card: an ONNX file, a module of the user's own, a checkpoint of an unknown variant."""

from __future__ import annotations

import re
from typing import Final, Literal

from skdeploy.core.architecture import NetworkSpec
from skdeploy.core.interface import ArrayInput, DynamicSize
from skdeploy.core.precision import PRECISIONS
from skdeploy.core.spec import CLASSIFICATION, Assumed, InputSpec, ModelSpec, Preprocess, Reference, Source, TensorSpec
from skdeploy.zoo.assumed import IMAGENET_MEAN, IMAGENET_STD, RESTORATION, preprocessing_of

DEFAULT_SIZE: Final = 224
CROP: Final = 0.875  # of the shorter side, as torchvision and timm evaluate
IMAGENET: Final = "ImageNet's defaults"


def spec_without_card(
    name: str,
    network: NetworkSpec,
    channels: int,
    size: tuple[int, int] | None = None,
    task: str = CLASSIFICATION,
    outputs: tuple[TensorSpec, ...] = (),
    *,
    gives_images: bool = False,
) -> ModelSpec:
    """A spec made from the network itself, with ImageNet's preprocessing. What gives images takes them as 0..1, not
    resized.
    """
    height, width = size or (DEFAULT_SIZE, DEFAULT_SIZE)
    read: Literal[1, 3] = 1 if channels == 1 else 3
    spec = ModelSpec(
        schema_version=1,
        name=_plain(name),
        summary="made without a card",
        network=network,
        image=InputSpec(channels=read, height=height, width=width),
        image_preprocess=Preprocess(
            resize=None
            if gives_images
            else max(round(max(height, width) / CROP) if task == CLASSIFICATION else 0, height, width),
            mean=(0.0,) * read if gives_images else IMAGENET_MEAN[read],
            std=(1.0,) * read if gives_images else IMAGENET_STD[read],
        ),
        tolerance={precision: precision.tolerance for precision in PRECISIONS.values()},
        source=Source(paper="unknown", url="", licence="as of the weights"),
        reference=Reference(),
        task=task,
        outputs=outputs,
    )
    assumed = preprocessing_of(spec, RESTORATION if gives_images else IMAGENET)
    if size is not None:  # the network itself, or the user, said it
        assumed = assumed.model_copy(update={"size": None})
    return spec.model_copy(update={"assumed": Assumed(preprocessing=assumed)})


def spec_of_arrays(
    name: str,
    network: NetworkSpec,
    inputs: tuple[ArrayInput, ...],
    sizes: dict[str, DynamicSize],
    task: str,
    outputs: tuple[TensorSpec, ...],
) -> ModelSpec:
    """A spec made from a network whose inputs are not one image."""
    return ModelSpec(
        schema_version=1,
        name=_plain(name),
        summary="made without a card",
        network=network,
        inputs=inputs,
        sizes=sizes,
        tolerance={precision: precision.tolerance for precision in PRECISIONS.values()},
        source=Source(paper="unknown", url="", licence="as of the weights"),
        task=task,
        outputs=outputs,
    )


def _plain(name: str) -> str:
    """A name that a card may have."""
    return re.sub(r"[^a-z0-9_.-]+", "-", name.lower()).strip("-._") or "model"

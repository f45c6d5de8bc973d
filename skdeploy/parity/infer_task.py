"""The task that the shapes of inputs and outputs suggest, where neither card nor user says it."""

from __future__ import annotations

from collections.abc import Sequence

from skdeploy.core.spec import CLASSIFICATION, TensorSpec
from skdeploy.parity.tasks import FEATURES, IMAGE_TO_IMAGE, RAW, SEGMENTATION

Shape = tuple[int, ...]


def inferred_task(
    fed: Shape, outputs: Sequence[Shape], integers: Sequence[Shape] = (), *, normalised: bool = False
) -> tuple[str, str]:
    """A task, and in words why it is the likely one. ``fed``: the shape of an input, (N, ...); ``outputs``: those for it,
    floating point; ``integers``: the others.

    ``normalised``: the first output has length 1.
    """
    if integers:
        each_pixel = all(_is_map_of_classes(fed, shape) for shape in integers)
        if each_pixel and (not outputs or inferred_task(fed, outputs)[0] == SEGMENTATION):
            return SEGMENTATION, "a class for each pixel"
        return RAW, "integers that are no map of classes" if not outputs else "outputs of several kinds"
    ranks = {len(shape) for shape in outputs}
    if len(outputs) > 1:
        maps = f"{len(outputs)} maps of features" if ranks == {4} else "outputs of several kinds"
        return (FEATURES if ranks == {4} else RAW), maps
    (output,) = outputs
    if ranks == {2} and normalised:
        return FEATURES, "one vector of length 1 per image, an embedding"
    if ranks == {2}:
        return CLASSIFICATION, "one vector per image"
    if len(fed) < 4 or ranks != {len(fed)}:
        return RAW, f"an output of shape {_shown(output)} fits no other task"
    return _of_map(fed, output)


def gives_image(fed: Shape, output: TensorSpec) -> bool:
    """Whether bytes, or floats with the channels last, are an image for an image; other shapes ``inferred_task`` knows."""
    shape = tuple(size for size in output.shape if isinstance(size, int))
    wanted = output.dtype == "uint8" or (output.is_floating and output.channels_axis == 3)
    if len(fed) != 4 or len(shape) != 4 or not wanted:
        return False
    turned = shape if output.channels_axis == 1 else (shape[0], shape[3], *shape[1:3])
    return _of_map(fed, turned)[0] == IMAGE_TO_IMAGE


def _of_map(fed: Shape, output: Shape) -> tuple[str, str]:
    channels, size = output[1], output[2:]
    same, larger = size == fed[2:], _is_enlarged(fed[2:], size)
    if len(fed) == 4 and larger and channels == fed[1] == 3:
        return IMAGE_TO_IMAGE, f"images in, images {'of the same size ' if same else ''}out"
    if same and channels > 1 and channels != fed[1]:
        return SEGMENTATION, f"{channels} values for each pixel"
    if same or (larger and channels == fed[1]):
        return RAW, f"{_shown(output)} may be an image, a mask or a depth: say which"
    return FEATURES, f"a map of {channels} channels"


def _is_map_of_classes(fed: Shape, shape: Shape) -> bool:
    """Whether there is one number for each pixel of an image or voxel of a volume: (N, H, W) or (N, 1, H, W)."""
    return len(fed) >= 4 and shape in ((fed[0], *fed[2:]), (fed[0], 1, *fed[2:]))


def _is_enlarged(before: Shape, after: Shape) -> bool:
    """Whether all sides are the same multiple of what they were."""
    factors = {new / old for old, new in zip(before, after, strict=True)}
    return len(factors) == 1 and min(factors) >= 1 and min(factors).is_integer()


def _shown(shape: Shape) -> str:
    return f"(N, {', '.join(map(str, shape[1:]))})"

"""The shapes of a graph's inputs that an engine must take: fixed sizes from the graph, the others from the options."""

from __future__ import annotations

from pathlib import Path

from skdeploy.core.errors import UsageError
from skdeploy.engines._api import Tensor
from skdeploy.engines._configure import Shape
from skdeploy.engines.options import BatchProfile, BuildOptions

_SIZES = ("height", "width")  # the names that passes/trace.py gives to dynamic dimensions, in the order of `sizes`


def profile_shapes(
    tensor: Tensor, batch: BatchProfile, options: BuildOptions, onnx_path: Path
) -> tuple[Shape, Shape, Shape]:
    """The min, opt and max shape of an input: fixed sizes as they are, the others from the options. Raises
    UsageError.
    """
    shape, sizes = tuple(tensor.shape), options.sizes
    choices: list[tuple[int, int, int]] = []
    for axis, size in enumerate(shape):
        offered = _offered(tensor, axis, batch, options)
        if size < 0 and offered is None:
            raise UsageError(
                f"input {tensor.name!r} of {onnx_path} has shape {shape}, and no profile for dimension {axis}",
                advice="export with --dynamic-size for a dynamic height or width; for other inputs give a card with [sizes]",
            )
        if size >= 0 and offered is not None and not offered[0] <= size <= offered[2]:
            raise UsageError(
                f"input {tensor.name!r} of {onnx_path} has the fixed size {size} in dimension {axis}, which is "
                f"outside the profile {offered[0]}/{offered[1]}/{offered[2]}",
                advice="export with a dynamic batch or size, or give a profile that includes the fixed one",
            )
        choices.append((size, size, size) if size >= 0 or offered is None else offered)
    if sizes is not None and -1 not in shape[1:]:
        raise UsageError(
            f"input {tensor.name!r} of {onnx_path} has the fixed size {shape[1:]}, so its height and width "
            "cannot be chosen",
            advice="leave the sizes out, or export with a dynamic size (--dynamic-size)",
        )
    low, best, high = (tuple(choice[which] for choice in choices) for which in range(3))
    return low, best, high


def _offered(tensor: Tensor, axis: int, batch: BatchProfile, options: BuildOptions) -> tuple[int, int, int] | None:
    """The profile for a dimension: the batch, which is the first, or another, known by its name."""
    if axis == 0:
        return batch.min, batch.opt, batch.max
    name, sizes = tensor.get_dimension_name(axis), options.sizes
    if name in (known := dict(options.dimensions)):
        return known[name]
    if sizes is None or name not in _SIZES:
        return None
    low, best, high = (size[_SIZES.index(name)] for size in sizes)
    return low, best, high

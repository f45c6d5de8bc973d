"""Whether weights are those of a network: every tensor there, of its shape, finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from skdeploy.core.errors import WeightsError
from skdeploy.core.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

SHOWN_KEYS: Final = 10
SKDEPLOY_LAYOUT: Final = "the keys are skdeploy's own: stem, stages.S.U, classifier (see models/README.md)"


def check_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], spec: ModelSpec, path: Path) -> None:
    """Raises WeightsError unless keys and shapes are the network's and every value is finite."""
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted]
    if missing or unexpected:
        kinds = {"missing": missing, "unexpected": unexpected}
        shown = "\n".join(_listed(title, keys) for title, keys in kinds.items() if keys)
        raise WeightsError(f"{path} does not fit {spec.name}:\n{shown}", advice=SKDEPLOY_LAYOUT)
    classifier = state["classifier.weight"].shape
    classes = classifier[0] if len(classifier) == 2 else spec.network.classes  # else it is listed below
    if classes != spec.network.classes:
        raise WeightsError(
            f"{path} was trained for {classes} classes, the card {spec.name} says {spec.network.classes}",
            advice=f"copy the card and set network.classes = {classes}",
        )
    wrong = [
        f"{key}: {tuple(state[key].shape)} in the file, {tuple(tensor.shape)} in the network"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if wrong:
        raise WeightsError(
            f"{path} does not fit {spec.name}:\n{_listed('other shapes', wrong)}", advice=SKDEPLOY_LAYOUT
        )
    integers = [
        f"{key}: {state[key].dtype}"
        for key, tensor in wanted.items()
        if tensor.is_floating_point() and not state[key].is_floating_point()
    ]
    if integers:
        raise WeightsError(
            f"{path} holds weights that are not floating point:\n{_listed('tensors', integers)}",
            advice="give the weights of the training, before any quantization",
        )
    broken = [key for key, tensor in state.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if broken:
        raise WeightsError(
            f"{path} has NaN or infinite values:\n{_listed('tensors', broken)}",
            advice="the training diverged, or the file is damaged",
        )


def _listed(title: str, keys: list[str]) -> str:
    shown = "".join(f"\n    {key}" for key in keys[:SHOWN_KEYS])
    more = f"\n    ... and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return f"  {title} ({len(keys)}):{shown}{more}"

"""From foreign keys to canonical ones: which layout a checkpoint has, and its tensors under our names."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from skdeploy.checkpoints.layouts import LAYOUTS
from skdeploy.checkpoints.rules import Layout
from skdeploy.core.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

SHOWN_KEYS: Final = 10
OWN_KEYS: Final = ("stem.", "stages.", "classifier.")  # skdeploy's own


@dataclass(frozen=True)
class Recognised:
    """A layout and, for each of the checkpoint's keys, the canonical key that it stands for."""

    layout: Layout
    canonical: dict[str, str]


def recognise(keys: Collection[str], path: Path) -> Recognised:
    """The one layout that gives every key a meaning. Raises WeightsError with the closest one, and the first keys it lacks."""
    fits = [Recognised(layout.of(keys), renamed(layout, keys)) for layout in LAYOUTS.values()]
    best = max(fits, key=lambda fit: len(fit.canonical))
    unknown = [key for key in keys if key not in best.canonical]
    if unknown:
        shown = "".join(f"\n    {key}" for key in unknown[:SHOWN_KEYS])
        raise WeightsError(
            f"the keys of {path} fit no known layout. The closest is {best.layout.name}, which knows "
            f"{len(best.canonical)} of {len(keys)}. The first unknown keys:{shown}",
            advice=f"three ways go on: your own code, `skdeploy export package.module:function --weights {path}`; an ONNX file "
            "that it exports, `skdeploy export NET.onnx`; or rename the keys to those of a known layout: skdeploy's own, "
            + ", ".join(LAYOUTS),
        )
    if not any(".sk.gate." in key or ".sk.branches.1." in key for key in best.canonical.values()):
        raise WeightsError(
            f"{path} has no selective kernel convolutions: its keys are those of a plain ResNet",
            advice="skdeploy deploys Selective Kernel Networks; the Python function attach_selective_kernels adds "
            "them to another network",
        )
    return best


def known(keys: Collection[str]) -> int:
    """How many keys have a meaning in the layout that knows the most of them, skdeploy's own included."""
    own = sum(key.startswith(OWN_KEYS) for key in keys)
    return max(own, *(len(renamed(layout, keys)) for layout in LAYOUTS.values()))


def renamed(layout: Layout, keys: Collection[str]) -> dict[str, str]:
    """The canonical key of each key that the layout knows."""
    rules = layout.of(keys).rules
    pairs = ((key, rules.canonical(key)) for key in keys)
    return {key: canonical for key, canonical in pairs if canonical is not None}


def assemble(tensors: Mapping[str, Tensor], canonical: Mapping[str, str], path: Path) -> dict[str, Tensor]:
    """Return the tensors under canonical keys, in canonical shapes.

    Select FCs, one for each branch, are stacked, branch-major. A convolution of 2 C channels that is split in streams becomes
    two branches. Fully connected gates become 1x1 convolutions. Caffe's (1, C, 1, 1) statistics become (C,). Raises
    WeightsError for a tensor that does not fit its key in any network.
    """
    import torch

    state: dict[str, Tensor] = {}
    stacked: dict[str, dict[int, Tensor]] = {}
    for key, tensor in tensors.items():
        name = canonical[key]
        if name.endswith("num_batches_tracked"):
            continue  # inference does not read it
        _check_rank(key, name, tuple(tensor.shape), path)
        piece = re.fullmatch(r"(.*\.gate\.fc2)\.(\d+)\.(weight|bias)", name)
        if piece:
            stacked.setdefault(f"{piece[1]}.{piece[3]}", {})[int(piece[2])] = tensor
        elif ".sk.streams." in name:
            for branch, half in enumerate(tensor.chunk(2)):
                state[name.replace(".streams.", f".branches.{branch}.")] = half
        else:
            state[name] = tensor
    for name, pieces in stacked.items():
        if len({piece.shape for piece in pieces.values()}) > 1:
            shapes = ", ".join(str(tuple(pieces[branch].shape)) for branch in sorted(pieces))
            raise WeightsError(
                f"{path}: the parts of {name} in the branches have different shapes: {shapes}",
                advice="the file is damaged, or its keys belong to another network",
            )
        state[name] = torch.cat([pieces[branch] for branch in sorted(pieces)])
    return {name: _shaped(name, tensor) for name, tensor in state.items()}


def _check_rank(key: str, name: str, shape: tuple[int, ...], path: Path) -> None:
    ranks: tuple[int, ...] = (1, 4)
    if name.endswith("conv.weight"):
        ranks = (4,)
    elif name.endswith(".weight") and (".gate.fc" in name or name == "classifier.weight"):
        ranks = (2, 4)
    vector = ranks != (1, 4) or math.prod(shape) == max(shape, default=0)
    if len(shape) not in ranks or not all(shape) or not vector:
        raise WeightsError(
            f"{path}: {key} has the shape {shape}, which {name} cannot have",
            advice="the file is damaged, or its keys belong to another network",
        )


def _shaped(name: str, tensor: Tensor) -> Tensor:
    if re.search(r"\.gate\.fc[12]\.weight$", name) and tensor.ndim == 2:
        tensor = tensor[:, :, None, None]
    elif name == "classifier.weight":
        tensor = tensor.reshape(-1, tensor.shape[-1])
    elif tensor.ndim > 1 and not name.endswith(("conv.weight", "fc1.weight", "fc2.weight")):
        tensor = tensor.reshape(-1)
    return tensor.contiguous()

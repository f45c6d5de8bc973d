"""The committed goldens: what each original implementation computes, and its weights as it saves them."""

from __future__ import annotations

import json
import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.checkpoints.files import State, torch_bytes

FOLDER = Path(__file__).parents[1] / "golden/layouts"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))

# Which layout each must be recognised as.
LAYOUT_OF = {
    "developer0hye": "developer0hye",
    "ppplang": "pppLang",
    "pytorchcv-sknet": "pytorchcv",
    "pytorchinsight-sk_resnet50": "PytorchInsight",
    "researchingdexter": "ResearchingDexter",
    "simclr-r50_1x_sk1": "SimCLRv2",
    "syt2": "syt2",
    "timm-skresnet18": "timm",
    "timm-skresnet50": "timm",
    "timm-skresnet50d": "timm",
    "timm-skresnext50_32x4d": "timm",
}


@dataclass(frozen=True)
class Golden:
    """Weights under the original's keys, an input, and the outputs of the original's own code."""

    name: str
    state: State
    arrays: dict[str, Tensor]
    metadata: dict[str, Any]

    @property
    def input(self) -> Tensor:
        return self.arrays["input"]

    @property
    def under(self) -> str | None:
        under: str | None = self.metadata["checkpoint"]["state_dict_under"]
        return under

    @property
    def beside(self) -> list[str]:
        """What lies beside the weights; a remark follows the name."""
        return [entry.split()[0] for entry in self.metadata["checkpoint"]["beside"]]


@cache
def golden(name: str) -> Golden:
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file if key != "metadata"}
        metadata = json.loads(str(file["metadata"]))
    state = {key.removeprefix("state/"): array for key, array in arrays.items() if key.startswith("state/")}
    return Golden(name, state, arrays, metadata)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def checkpoint_bytes(of: Golden, **options: Any) -> bytes:
    """``torch.save`` as that project's training script calls it."""
    if of.under is None:
        return torch_bytes(of.state, **options)
    with recorder_meter() as recorder:
        parameter = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
        parameter.grad = torch.ones(3)
        optimizer.step()
        beside = {
            "epoch": 7,
            "acc": np.float64(71.5),
            "best_acc": 72.5,
            "recorder": recorder,
            "optimizer": optimizer.state_dict(),
            "scheduler": {"last_epoch": 7, "milestones": [30, 60]},
            "head": {"layers.0.weight": torch.ones(4, 4)},
        }
        return torch_bytes({of.under: of.state, **{key: beside[key] for key in of.beside}}, **options)


@contextmanager
def recorder_meter() -> Iterator[Any]:
    """An object of syt2's own class, which is importable while it is saved and not when it is read."""
    module: Any = types.ModuleType("utils")

    class RecorderMeter:
        def __init__(self) -> None:
            self.total_epoch, self.best = 90, np.float64(71.5)
            self.epoch_accuracy = np.zeros((90, 2), np.float32)

    RecorderMeter.__module__, RecorderMeter.__qualname__ = "utils", "RecorderMeter"
    module.RecorderMeter = RecorderMeter
    before = sys.modules.get("utils")
    sys.modules["utils"] = module
    try:
        assert pickle.dumps(RecorderMeter())
        yield RecorderMeter()
    finally:
        del sys.modules["utils"]
        if before is not None:
            sys.modules["utils"] = before

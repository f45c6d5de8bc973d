"""Small networks with selective kernels whose inputs are not one image of 1 or 3 channels, and samples for them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

WIDTH: Final = 8


class Selected(nn.Module):
    """Two branches of 3 and dilated 3 in any number of dimensions, a gate with softmax, and a shortcut."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        conv: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        norm: Any = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
        self.branches = nn.ModuleList(
            nn.Sequential(conv(WIDTH, WIDTH, 3, padding=d, dilation=d, bias=False), norm(WIDTH), nn.ReLU())
            for d in (1, 2)
        )
        self.squeeze = nn.Linear(WIDTH, 6)
        self.gates = nn.ModuleList(nn.Linear(6, WIDTH) for _ in range(2))
        self.rank = rank

    def forward(self, x: Tensor) -> Tensor:
        maps = [branch(x) for branch in self.branches]
        pooled = (maps[0] + maps[1]).mean(tuple(range(2, 2 + self.rank)))
        hidden = torch.relu(self.squeeze(pooled))
        weights = torch.softmax(torch.stack([gate(hidden) for gate in self.gates], 1), 1)
        shape = (-1, WIDTH) + (1,) * self.rank
        return torch.relu(maps[0] * weights[:, 0].reshape(shape) + maps[1] * weights[:, 1].reshape(shape) + x)


class Bands(nn.Module):
    """A hyperspectral patch to a class: (18, 12, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(18, WIDTH, 3, padding=1)
        self.block = Selected(2)
        self.fc = nn.Linear(WIDTH, 5)

    def forward(self, planes: Tensor) -> Tensor:
        return self.fc(self.block(torch.relu(self.stem(planes))).mean((2, 3)))


class Volume(nn.Module):
    """A volume to a class: (1, 6, 10, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, WIDTH, 3, padding=1)
        self.block = Selected(3)
        self.fc = nn.Linear(WIDTH, 5)

    def forward(self, volume: Tensor) -> Tensor:
        return self.fc(self.block(torch.relu(self.stem(volume))).mean((2, 3, 4)))


class Speaker(nn.Module):
    """Features of speech, any number of frames that 4 divides, to an embedding: (20, frames)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(20, WIDTH, 4, stride=4)
        self.block = Selected(1)
        self.fc = nn.Linear(WIDTH, 7)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc(self.block(torch.relu(self.stem(features))).mean(2))


class Pair(nn.Module):
    """Two images, and a number of steps, to a change of the first: (3, 12, 12), (3, 12, 12), (2,)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(6, WIDTH, 3, padding=1)
        self.block = Selected(2)
        self.embed = nn.Embedding(2, WIDTH)
        self.out = nn.Conv2d(WIDTH, 3, 1)

    def forward(self, before: Tensor, after: Tensor, step: Tensor) -> Tensor:
        x = torch.relu(self.stem(torch.cat([before, after], 1)))
        return before + self.out(self.block(x + self.embed(step).sum(1)[..., None, None]))


INPUTS: Final[Mapping[type[nn.Module], Mapping[str, tuple[int, ...]]]] = {
    Bands: {"planes": (18, 12, 12)},
    Volume: {"volume": (1, 6, 10, 10)},
    Speaker: {"features": (20, 40)},
    Pair: {"before": (3, 12, 12), "after": (3, 12, 12), "step": (2,)},
}


def trained(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """With normalised random weights, and statistics of batch normalisation that are not those of a new layer."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = kind()
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean = torch.rand(WIDTH) * 0.4 - 0.2
                module.running_var = torch.rand(WIDTH) + 0.5
    return network.eval().requires_grad_(False)


def bands() -> nn.Module:
    return trained(Bands)


def volume() -> nn.Module:
    return trained(Volume)


def speaker() -> nn.Module:
    return trained(Speaker)


def pair() -> nn.Module:
    return trained(Pair)


def sample(kind: type[nn.Module], seed: int) -> dict[str, NDArray[Any]]:
    """One sample: normal numbers, or 0 and 1 where integers are needed."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.integers(0, 2, shape)
        if name == "step"
        else generator.standard_normal(shape).astype(np.float32) + np.float32(0.3)
        for name, shape in INPUTS[kind].items()
    }


def save_samples(kind: type[nn.Module], folder: Path, count: int) -> Path:
    """A folder of .npz files, one sample each."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        np.savez(folder / f"{index:03}.npz", **sample(kind, index))  # type: ignore[arg-type]  # numpy's stub of savez
    return folder


def export_onnx(kind: type[nn.Module], path: Path, batch: int | None = None) -> Path:
    """As anybody would: a dynamic batch, and dynamic frames."""
    arrays = sample(kind, 0)
    example = tuple(torch.from_numpy(np.stack([array] * (batch or 2))) for array in arrays.values())
    axes: dict[str, dict[int, str]] = {name: {0: "n"} for name in (*arrays, "out")} if batch is None else {}
    if kind is Speaker:
        axes.setdefault("features", {})[2] = "frames"
    named: dict[str, Any] = {"input_names": list(arrays), "output_names": ["out"], "dynamic_axes": axes}
    with warnings.catch_warnings(action="ignore"):  # of the exporter that most people still call
        torch.onnx.export(trained(kind), example, str(path), dynamo=False, opset_version=17, **named)
    return path


CARD: Final = """schema = 1
name = "{name}"
summary = "a test"
task = "{task}"

{inputs}
[network]
family = "{family}"
{classes}

[source]
paper = "unknown"
url = ""
licence = "test"

[tolerance.fp32]
max_rel_error = 1e-4
min_cosine = 0.99999
min_sqnr_db = 90.0
"""


def card(kind: type[nn.Module], path: Path, family: str) -> Path:
    """The card of a network, as a person would write it."""
    tables = []
    for name, shape in INPUTS[kind].items():
        shown = '[20, "frames"]' if kind is Speaker else list(shape)
        tables.append(
            f'[[inputs]]\nname = "{name}"\ndtype = "{"int64" if name == "step" else "float32"}"\nshape = {shown}\n'
        )
    if kind is Speaker:
        tables.append("[sizes.frames]\nusual = 40\nmultiple = 4\nmin = 20\nmax = 100\n")
    task, classes = ("raw", "") if kind is Pair else ("classification", f"classes = {7 if kind is Speaker else 5}")
    text = CARD.format(name=kind.__name__.lower(), task=task, inputs="\n".join(tables), family=family, classes=classes)
    path.write_text(text, encoding="utf-8")
    return path

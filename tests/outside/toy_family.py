"""A network family and a checkpoint layout as somebody else's package would bring them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

import torch
from torch import Tensor, nn

from skdeploy.checkpoints.rules import PART, Implied, Layout, M, S, U, named
from skdeploy.core.architecture import Positive, StageSpec, TrunkSpec
from skdeploy.zoo.build import build, initialise
from skdeploy.zoo.cards import read_card
from skdeploy.zoo.family import Family, trunk_in_words
from skdeploy.zoo.fold import fold_into_next
from skdeploy.zoo.sknet import SKUnit, conv_shortcut
from skdeploy.zoo.trunk import Trunk, stem
from tests import tiny


class ToySpec(TrunkSpec):
    """An SKNet that ends in a normalisation and a 1x1 convolution of ``neck`` channels."""

    family: Literal["toy"] = "toy"
    neck: Positive = 12

    @classmethod
    def of_shapes(cls, shapes: Mapping[str, tuple[int, ...]], **trunk: Any) -> Self:
        return cls(neck=shapes["neck.conv.weight"][0], **trunk)


class Neck(nn.Module):
    """(N, C, H, W) -> (N, neck, H, W). In the deploy form its normalisation is a part of the convolution."""

    absorbed = ("norm",)

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, width, 1)

    def fold_own(self) -> None:
        assert isinstance(self.norm, nn.BatchNorm2d)  # typed as a module, since an Identity takes its place
        fold_into_next(self.norm, self.conv)
        self.norm = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.norm(x))
        return y


class ToyNet(Trunk):
    """(N, C, H, W) -> logits (N, classes)."""

    def __init__(self, spec: ToySpec, in_channels: int) -> None:
        def unit(channels: int, stage: StageSpec, stride: int, _first: bool) -> SKUnit:
            shortcut = conv_shortcut(channels, stage.out_channels, stride)
            return SKUnit(channels, stage, stride, spec.selective_kernel, shortcut)

        super().__init__(spec, stem(spec.stem, in_channels), unit)
        self.neck = Neck(spec.stages[-1].out_channels, spec.neck)
        self.classifier = nn.Linear(spec.neck, spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.neck(self.stages(self.pool(self.stem(x))))
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


FAMILY = Family("tests.outside.toy_family:ToyNet", trunk_in_words, forward="a neck before the pool")
LAYOUT = Layout(
    "toy",
    named(
        {"stem.{p}": rf"entry\.{PART}", "neck.norm": r"neck\.norm", "neck.conv": r"neck\.conv", "classifier": "head"},
        rf"body\.{S}\.{U}",
        {
            "sk.branches.{m}.{p}": rf"split\.{M}\.{PART}",
            "sk.gate.fc1": "fuse",
            "sk.gate.bn": "fuse_norm",
            "sk.gate.fc2": "select",
            **{name: (rf"{name}\.conv", rf"{name}\.bn") for name in ("reduce", "expand", "shortcut")},
        },
    ),
    Implied("toy", strides=(1, 2), max_pool=False, note="toys are fragile"),
)
FOREIGN: Final = {
    "stem.": "entry.", "stages.": "body.", ".sk.branches.": ".split.", ".sk.gate.fc1": ".fuse", ".sk.gate.bn": ".fuse_norm",
    ".sk.gate.fc2": ".select", "classifier": "head",
}  # fmt: skip


def write_card(folder: Path) -> Path:
    """The tiny card, with a neck."""
    text = tiny.CARD.read_text(encoding="utf-8").replace('family = "sknet"', 'family = "toy"\nneck = 10')
    (folder / "toy.toml").write_text(text.replace('name = "tiny"', 'name = "toy"'), encoding="utf-8")
    return folder / "toy.toml"


def write_checkpoint(card: Path) -> tuple[Path, nn.Module]:
    """Weights in the layout, beside the card, and the network that they are of. Its normalisations have seen images."""
    network = build(read_card(card))
    initialise(network, 3)
    network.neck.norm.running_mean.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    state = {}
    for key, tensor in network.state_dict().items():
        for ours, theirs in FOREIGN.items():
            key = key.replace(ours, theirs)
        state[key] = tensor
    torch.save(state, card.with_suffix(".pth"))
    return card.with_suffix(".pth"), network.eval()

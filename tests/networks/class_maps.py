"""Networks whose outputs are integers or booleans: the trained SK-UNet behind an ArgMax, alone or beside its logits, a mask
behind a comparison, and a classifier that gives the numbers of its classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.networks import sk_unet
from tests.networks.split_attention import one_group


class ClassMap(nn.Module):
    """(N, 3, H, W) to the class of each pixel, (N, H, W), int64; with ``logits``, these first."""

    def __init__(self, *, logits: bool = False) -> None:
        super().__init__()
        self.network, self.logits = sk_unet.trained(), logits

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        made: Tensor = self.network(x)
        return {"logits": made, "classes": made.argmax(1)} if self.logits else made.argmax(1)


class Mask(nn.Module):
    """Whether each pixel shows any shape, (N, 1, H, W), boolean."""

    def __init__(self) -> None:
        super().__init__()
        self.network = sk_unet.trained()

    def forward(self, x: Tensor) -> Tensor:
        background = torch.softmax(self.network(x), 1)[:, :1]
        return background < 0.5


class BestClasses(nn.Module):
    """The best class of an image, (N,), and its three best with their logits, (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.network = one_group()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits: Tensor = self.network(x)
        values, places = logits.topk(3, dim=1)
        return {"best": logits.argmax(1), "values": values, "places": places}


def class_map() -> nn.Module:
    return ClassMap().eval()


def logits_and_map() -> nn.Module:
    return ClassMap(logits=True).eval()


def mask() -> nn.Module:
    return Mask().eval()


def best_classes() -> nn.Module:
    return BestClasses().eval()

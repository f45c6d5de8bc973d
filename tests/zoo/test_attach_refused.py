"""What cannot become a selective kernel convolution is refused by its name, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from skdeploy.core.errors import UsageError
from skdeploy.zoo.attach import ExtraBranch, attach_selective_kernels
from tests.zoo.attach_networks import Net


class OwnConv(nn.Conv2d):
    """A convolution with a class of its own."""


class Twice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](super().forward(x))


class Alias(Net):
    """Knows one convolution by two names and calls it once."""

    def __init__(self) -> None:
        super().__init__(conv())
        self.alias = self.layers[0]


class Never(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


def conv(size: int | tuple[int, int] = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(8, 8, size, **options)


THREE = Net(conv(1), conv(3), conv(5))
CANNOT = "cannot make a selective kernel convolution of "
REFUSED: dict[str, tuple[nn.Module, str | Callable[..., bool] | None, str]] = {
    "no match": (THREE, "layer.1x", r"'layer\.1x' matches no convolution\nnearest candidates: layers\.1, layers\.2"),
    "no predicate": (
        THREE,
        lambda name, conv: False,
        "where chooses no convolution\ncandidates: stem, layers.1, layers.2",
    ),
    "kernel 1": (THREE, r"\.0", r"matches only convolutions of kernel 1, such as layers\.0\nnearest candidates"),
    "bad pattern": (THREE, "(", "'\\(' is not a regular expression"),
    "only a stem": (Net(), None, "the stem stem is the only convolution with a kernel above 1"),
    "no convolution": (nn.Sequential(nn.Linear(2, 2)), None, "no convolution with a kernel above 1"),
    "the model": (conv(), ".*", f"{CANNOT}the model: it is the whole model"),
    "even": (Net(conv(2)), None, rf"{CANNOT}layers\.0: its kernel \(2, 2\) is even"),
    "half even": (Net(conv((3, 4))), None, r"its kernel \(3, 4\) is even"),
    "reflect": (Net(conv(padding=1, padding_mode="reflect")), None, r"layers\.0: its padding mode is 'reflect'"),
    "transposed": (Net(nn.ConvTranspose2d(8, 8, 3)), "layers", r"layers\.0: it is a transposed convolution"),
    "1-D": (Net(nn.Conv1d(8, 8, 3)), "layers", r"layers\.0: it is a Conv1d"),
    "subclass": (Net(OwnConv(8, 8, 3)), None, r"layers\.0: it is a OwnConv, not a plain nn\.Conv2d"),
    "attached": (
        attach_selective_kernels(THREE),
        None,
        r"branches\.0\.conv: it is already part of layers\.1, a selective kernel",
    ),
    "used twice": (Twice(conv(padding=1)), None, r"layers\.0: it is used more than once"),
    "two names": (Net(*[conv()] * 2), None, r"layers\.0: it is used more than once"),
    "two names, one call": (Alias(), None, r"layers\.0: it is used more than once"),
    "never": (Never(conv()), None, r"layers\.0: the model's forward does not call it"),
}


@pytest.mark.parametrize(("model", "where", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_replaced_is_refused_by_its_name(model: nn.Module, where: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        attach_selective_kernels(model, where)


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"branches": []}, "no extra branch"),
    ({"reduction": 0}, "reduction 0"),
    ({"min_width": 0}, "min_width 0"),
    ({"activation": "gelu"}, "'original' or 'relu'"),
    ({"first_branch_share": 1.0}, "above 0 and below 1"),
    ({"branches": [ExtraBranch(dilation=0)]}, "dilation and groups must be at least 1"),
    ({"branches": [ExtraBranch(groups=0)]}, "dilation and groups must be at least 1"),
    ({"branches": [ExtraBranch(kernel=4)]}, "the kernel must be odd"),
    ({"branches": [ExtraBranch(groups=3)]}, r"layers\.1: a branch with 3 groups does not divide 8 -> 8 channels"),
    ({"branches": [ExtraBranch(kernel=1)]}, r"layers\.1: a branch of kernel \(1, 1\), dilation \(2, 2\) covers less"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=lambda value: str(value))
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        attach_selective_kernels(THREE, **options)

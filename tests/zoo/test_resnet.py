"""SK ResNets: their trunks against pytorchcv's ResNets, and the pools and splits written out naively."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from pytorchcv.models.resnet import ResNet
from pytorchcv.models.resneta import ResNetA
from torch import Tensor, nn

from skdeploy.core.architecture import NetworkSpec, StemSpec
from skdeploy.core.errors import CardError
from skdeploy.zoo.resnet import PooledShortcut
from skdeploy.zoo.selective_kernel import selective_kernel
from skdeploy.zoo.trunk import pool
from tests.zoo.tiny_networks import BASIC, DENSE, STEM, VARIANTS, build, network, relative_error, trained

pytestmark = pytest.mark.usefixtures("one_thread")

# float64 rounds at 1e-16, and these 16 layers of a few hundred terms amplify that to about 1e-13.
SAME_FUNCTION = 1e-10

SEVEN = STEM | {"kernel": 7, "channels": 8}
DEEP = STEM | {"channels": 8, "deep": [4, 4]}
BOTTLENECKS = [
    {"units": 2, "middle_channels": 4, "out_channels": 16, "stride": 1},
    {"units": 2, "middle_channels": 6, "out_channels": 24, "stride": 2},
]
# With one branch, the selective kernel convolution is the 3x3 convolution that it replaces.
CASES: dict[str, tuple[type[nn.Module], NetworkSpec]] = {
    "basic blocks": (ResNet, network("resnet", DENSE, block="basic", stem=SEVEN, stages=BASIC)),
    "bottlenecks": (ResNet, network("resnet", DENSE, block="bottleneck", stem=SEVEN, stages=BOTTLENECKS)),
    "a deep stem and average pools": (
        ResNetA,
        network("resnet", DENSE, block="bottleneck", stem=DEEP, stages=BOTTLENECKS, shortcut="avg_pool"),
    ),
}
cases = pytest.mark.parametrize("case", CASES)


def rename(key: str, basic: bool) -> str:
    """The name that one of pytorchcv's parameters has here."""
    first, second = ("sk.branches.0", "expand") if basic else ("reduce", "sk.branches.0")
    for pattern, name in (
        (r"^features\.init_block\.conv\.", "stem."),
        (r"^features\.init_block\.conv(\d)\.", lambda m: f"stem.{int(m[1]) - 1}."),
        (r"^output\.", "classifier."),
        (r"^features\.stage(\d+)\.unit(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.{int(m[2]) - 1}."),
        (r"\.identity_conv\.", ".shortcut."),
        (r"\.identity_block\.conv\.", ".shortcut.project."),
        (r"\.body\.conv1\.", f".{first}."),
        (r"\.body\.conv2\.", f".{second}."),
        (r"\.body\.conv3\.", ".expand."),
    ):
        key = re.sub(pattern, name, key)
    return key


def images() -> Tensor:
    """The average pools see a map of odd size: 33 -> 17 -> 9 -> 5, and 42 -> 21 -> 11 -> 6."""
    return torch.randn(3, 3, 33, 42, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def original(case: str) -> nn.Module:
    make, spec = CASES[case]
    torch.manual_seed(0)
    widths: list[Any] = [[stage.out_channels] * stage.units for stage in spec.stages]
    model = make(widths, 8, bottleneck=spec.block == "bottleneck", conv1_stride=False, num_classes=5)
    model.get_submodule("features").final_pool = nn.AdaptiveAvgPool2d(1)
    return trained(model, images())


def ours(case: str, model: nn.Module) -> nn.Module:
    spec = CASES[case][1]
    copy = build(spec).double()
    copy.load_state_dict({rename(key, spec.block == "basic"): value for key, value in model.state_dict().items()})
    return copy.eval()


@cases
def test_with_one_branch_the_network_computes_what_pytorchcvs_resnet_does(case: str) -> None:
    model = original(case)
    assert relative_error(ours(case, model), model, images()) < SAME_FUNCTION


@cases
def test_the_comparison_sees_a_missing_activation(case: str) -> None:
    model = original(case)
    wrong = ours(case, model)
    wrong.get_submodule("stages.1.1").relu = nn.Identity()
    assert relative_error(wrong, model, images()) > SAME_FUNCTION


def test_the_comparison_sees_another_pool_in_a_shortcut() -> None:
    case = "a deep stem and average pools"
    model = original(case)
    wrong = ours(case, model)
    # the map is of odd size, and only what hangs over its edges is averaged otherwise
    wrong.get_submodule("stages.1.0.shortcut").pool = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, 2))
    assert relative_error(wrong, model, images()) > SAME_FUNCTION


def windows(x: Tensor, size: int, stride: int, count: int) -> list[list[Tensor]]:
    """What each of count x count windows sees of a map, cut off at its edges; from the upper left corner, no padding."""
    starts = [stride * index for index in range(count)]
    return [[x[..., i : i + size, j : j + size] for j in starts] for i in starts]


def maps(size: int) -> Tensor:
    return torch.randn(2, 4, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))


def assemble(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def pooled(shortcut: PooledShortcut, x: Tensor) -> Tensor:
    """The shortcut without its projection."""
    for layer in list(shortcut)[:-1]:
        x = layer(x)
    return x


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_padded_pool_averages_zeros_in_at_the_lower_and_right_edges(size: int, stride: int) -> None:
    x = maps(size)
    count = -(-size // stride)
    # always divided by four: the zeros of SimCLRv2's padding count
    expected = assemble([[w.sum((-1, -2)) / 4 for w in row] for row in windows(x, 2, stride, count)])
    found = pooled(PooledShortcut(4, 8, stride, padded=True), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [6, 7])
def test_an_average_pool_averages_what_it_sees(size: int) -> None:
    x = maps(size)
    expected = assemble([[w.mean((-1, -2)) for w in row] for row in windows(x, 2, 2, -(-size // 2))])
    found = pooled(PooledShortcut(4, 8, 2, padded=False), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_an_average_pool_of_stride_one_is_none() -> None:
    assert torch.equal(pooled(PooledShortcut(4, 8, 1, padded=False), maps(6)), maps(6))


@pytest.mark.parametrize("size", [7, 8, 112])
def test_caffes_max_pool_starts_at_the_corner_and_hangs_over_the_edge(size: int) -> None:
    x = maps(size) - 10  # all negative: a padded zero would win
    count = -(-(size - 3) // 2) + 1  # Caffe's ceil((size - kernel) / stride) + 1
    found = pool(StemSpec(channels=4, kernel=7, stride=2, max_pool=True, ceil_mode=True))(x)
    expected = assemble([[w.amax((-1, -2)) for w in row] for row in windows(x, 3, 2, count)])
    assert torch.equal(found, expected)
    if size == 112:
        assert found.shape[-1] == 56  # the same size as PyTorch's, from other windows
        assert not torch.equal(found, nn.functional.max_pool2d(x, 3, 2, 1))


def shortcuts(variant: str) -> list[list[str]]:
    """The layers of each unit's shortcut in the first two stages."""
    model = build(VARIANTS[variant])
    return [
        [type(layer).__name__ for layer in unit.shortcut.children()]
        for stage in model.get_submodule("stages").children()
        for unit in stage.children()
    ]


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("resnet of bottlenecks", [["Conv2d", "BatchNorm2d"], [], ["Conv2d", "BatchNorm2d"], []]),
        ("resnet of basic blocks", [[], [], ["Conv2d", "BatchNorm2d"], []]),
        ("resnet with a deep stem and average pools", [["ConvNormAct"], [], ["AvgPool2d", "ConvNormAct"], []]),
        (
            "resnet with padded average pools",
            [["ZeroPad2d", "AvgPool2d", "ConvNormAct"], [], ["ZeroPad2d", "AvgPool2d", "ConvNormAct"], []],
        ),
    ],
)
def test_shortcuts_are_where_the_shape_changes(variant: str, expected: list[list[str]]) -> None:
    assert shortcuts(variant) == expected


@torch.no_grad()
def test_each_branch_of_a_split_input_convolves_its_own_share() -> None:
    torch.manual_seed(0)
    spec = network("resnet", DENSE, DENSE | {"dilation": 2}, block="basic", split_input=True).selective_kernel
    layer = selective_kernel(spec, 8, 12, 2).double().eval()
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    for dilation, (branch, share) in enumerate(zip(layer.branches, x.chunk(2, 1), strict=True), start=1):
        weight = branch.get_submodule("conv").weight
        assert weight.shape == (12, 4, 3, 3)
        convolved = nn.functional.conv2d(share, weight, None, 2, padding=dilation, dilation=dilation)
        # a new batch normalisation: mean 0, variance 1
        expected = convolved.div(torch.tensor(1 + 1e-5, dtype=torch.float64).sqrt()).relu()
        torch.testing.assert_close(branch(x), expected, rtol=0, atol=1e-13)


def test_an_input_that_cannot_be_split_is_refused() -> None:
    spec = network("resnet", DENSE, DENSE, block="basic", split_input=True).selective_kernel
    with pytest.raises(CardError, match="7 input channels cannot be split among 2 branches"):
        selective_kernel(spec, 7, 8)

"""ShuffleNetV2 with selective kernels: its shuffle, and its trunk against pytorchcv's ShuffleNetV2."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from pytorchcv.models.shufflenetv2 import ShuffleNetV2
from torch import Tensor, nn

from skdeploy.core.errors import CardError
from skdeploy.core.spec import ModelSpec
from skdeploy.zoo.build import build as build_card
from skdeploy.zoo.build import build_meta, initialise
from skdeploy.zoo.cards import load_card
from skdeploy.zoo.fold import count_parameters
from skdeploy.zoo.shufflenet import SKShuffleNetV2, SKShuffleUnit, shuffle
from tests.zoo.tiny_networks import DENSE, K3, SHUFFLE, build, network, relative_error, trained

pytestmark = pytest.mark.usefixtures("one_thread")

# ShuffleNetV2's depthwise convolution: one 3x3 branch, no activation.
PLAIN = DENSE | {"activation": False}
# float64 rounds at 1e-16, and these 16 layers of at most a hundred terms amplify that to about 1e-13.
SAME_FUNCTION = 1e-10


@pytest.mark.parametrize("channels", [2, 4, 10])
def test_the_shuffle_is_torchs(channels: int) -> None:
    x = torch.randn(3, channels, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shuffle(x), nn.ChannelShuffle(2)(x))


def test_the_shuffle_interleaves_the_halves() -> None:
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert shuffle(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("shufflenet_v2_0.5x-sk", 1_366_792), ("shufflenet_v2_1.0x-sk", 2_278_604)],  # torchvision's networks
)
def test_with_the_plain_convolution_a_card_is_the_shufflenet_v2_of_its_width(name: str, parameters: int) -> None:
    spec, _ = load_card(name)
    plain = spec.model_dump(by_alias=True)
    plain["network"]["selective_kernel"]["branches"] = [PLAIN]
    assert count_parameters(build_meta(ModelSpec.model_validate(plain))) == parameters


@pytest.mark.parametrize("name", ["shufflenet_v2_0.5x-sk", "shufflenet_v2_1.0x-sk"])
def test_every_branch_and_gate_of_a_card_adds_its_parameters(name: str) -> None:
    """Beside the plain network: a depthwise 3x3 and its normalisation, and a gate of width max(C / 16, 32), a unit."""
    spec, _ = load_card(name)
    added = 0
    for stage in spec.network.stages:
        c = stage.channels // 2
        d = max(c // 16, 32)
        added += stage.units * ((9 * c + 2 * c) + (c * d + 2 * d + 2 * c * d))
    plain = {"shufflenet_v2_0.5x-sk": 1_366_792, "shufflenet_v2_1.0x-sk": 2_278_604}[name]
    assert count_parameters(build_meta(spec)) == plain + added


def rename(key: str) -> str:
    """The name that one of pytorchcv's parameters has here."""
    for pattern, name in (
        (r"^features\.init_block\.conv\.", "stem."),
        (r"^features\.final_block\.", "head."),
        (r"^output\.", "classifier."),
        (r"^features\.stage(\d+)\.unit(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.{int(m[2]) - 1}."),
        (r"\.compress_(conv|bn)1\.", r".reduce.\1."),
        (r"\.dw_(conv|bn)2\.", r".sk.branches.0.\1."),
        (r"\.expand_(conv|bn)3\.", r".expand.\1."),
        (r"\.dw_(conv|bn)4\.", r".passed.0.\1."),
        (r"\.expand_(conv|bn)5\.", r".passed.1.\1."),
    ):
        key = re.sub(pattern, name, key)
    return key


@pytest.fixture(scope="module")
def original() -> nn.Module:
    """A small ShuffleNetV2 of pytorchcv, with the pools of the paper's code: padded, and global."""
    torch.manual_seed(0)
    widths: list[Any] = [[stage["channels"]] * stage["units"] for stage in SHUFFLE["stages"]]
    model: nn.Module = ShuffleNetV2(widths, SHUFFLE["stem_channels"], SHUFFLE["head_channels"], num_classes=5)
    features = model.get_submodule("features")
    features.get_submodule("init_block").pool = nn.MaxPool2d(3, 2, 1)
    features.final_pool = nn.AdaptiveAvgPool2d(1)
    return trained(model, images())


def images() -> Tensor:
    return torch.randn(3, 3, 45, 38, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def ours(original: nn.Module) -> SKShuffleNetV2:
    model = build(network("shufflenet_v2", PLAIN, **SHUFFLE)).double()
    assert isinstance(model, SKShuffleNetV2)  # build gives a module; rename is for this one's keys
    model.load_state_dict({rename(key): value for key, value in original.state_dict().items()})
    return model.eval()


def test_with_one_branch_the_network_computes_what_pytorchcvs_does(original: nn.Module) -> None:
    assert relative_error(ours(original), original, images()) < SAME_FUNCTION


def test_the_comparison_sees_the_halves_of_one_unit_swapped(original: nn.Module) -> None:
    model = ours(original)
    unit = model.get_submodule("stages.1.1")
    unit.register_forward_pre_hook(lambda _module, inputs: (inputs[0].roll(inputs[0].shape[1] // 2, 1),))
    assert relative_error(model, original, images()) > SAME_FUNCTION


def test_the_comparison_sees_an_activation_after_one_depthwise_convolution(original: nn.Module) -> None:
    model = ours(original)
    model.get_submodule("stages.0.1.sk.branches.0").register_forward_hook(lambda _m, _i, output: output.relu())
    assert relative_error(model, original, images()) > SAME_FUNCTION


def test_every_branch_is_depthwise() -> None:
    model = build(network("shufflenet_v2", DENSE, DENSE | {"dilation": 2}, **SHUFFLE))
    units = [module for module in model.modules() if isinstance(module, SKShuffleUnit)]
    assert len(units) == 4
    for unit in units:
        for branch in unit.sk.branches:
            convolution = branch.get_submodule("conv")
            assert isinstance(convolution, nn.Conv2d)  # get_submodule gives a module; groups belong to this kind
            assert convolution.groups == convolution.in_channels == convolution.out_channels


def test_channels_without_a_half_are_refused() -> None:
    stages = [{"units": 1, "channels": 9}]
    with pytest.raises(CardError, match="cannot split 9 channels in half"):
        build(network("shufflenet_v2", DENSE, **SHUFFLE | {"stages": stages}))


def test_groups_of_a_depthwise_branch_are_refused() -> None:
    with pytest.raises(CardError, match="as many groups as channels"):
        build(network("shufflenet_v2", K3, **SHUFFLE))


def test_an_untrained_network_does_not_fade() -> None:
    """A depthwise convolution whose weights are scaled by PyTorch's fan-out, which ignores groups, divides the signal by C.

    With 16 of them the features were 4e-5 of the first map, and FP16 kept few of their bits.
    """
    spec = load_card("shufflenet_v2_0.5x-sk")[0]
    untrained = build_card(spec).eval()
    initialise(untrained, 0)
    assert isinstance(untrained, SKShuffleNetV2)  # build gives a module; pool, stem and stages are this one's
    with torch.no_grad():
        x = untrained.pool(untrained.stem(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))))
        scale = float(untrained.stages(x).std() / x.std())
    assert 1e-2 < scale < 1e2

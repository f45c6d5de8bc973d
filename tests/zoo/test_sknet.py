"""SKNet against the paper's figures and against pytorchcv's independent implementation."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from pytorchcv.models.sknet import sknet50 as pytorchcv_sknet50
from torch import Tensor, nn

from skdeploy.core.architecture import SKNetSpec
from skdeploy.zoo.build import initialise
from skdeploy.zoo.cards import load_card
from skdeploy.zoo.fold import count_macs, count_parameters, fold
from skdeploy.zoo.sknet import SKNet


def build(name: str, **selective_kernel: Any) -> SKNet:
    """A card's network on the meta device, which has shapes and no memory, with some of its SK numbers replaced."""
    spec, _ = load_card(name)
    network = spec.network.model_dump()
    network["selective_kernel"].update(selective_kernel)
    with torch.device("meta"):
        return SKNet(SKNetSpec.model_validate(network), spec.input.channels)


def branch(kernel: int, dilation: int = 1, groups: int = 32) -> dict[str, int]:
    return {"kernel": kernel, "dilation": dilation, "groups": groups}


K3, K5, K7 = branch(3), branch(3, dilation=2), branch(3, dilation=3)


@pytest.mark.parametrize(
    ("name", "parameters"), [("sknet26", 16_746_408), ("sknet50", 27_479_784), ("sknet101", 48_736_040)]
)
def test_learnable_parameters_are_exactly_those_of_the_papers_architecture(name: str, parameters: int) -> None:
    assert count_parameters(build(name)) == parameters


@pytest.mark.parametrize("name", ["sknet26", "sknet50", "sknet101", "sknet-fashion"])
def test_a_card_states_its_networks_parameters(name: str) -> None:
    assert count_parameters(build(name)) == load_card(name)[0].reference.parameters


@pytest.mark.parametrize(("name", "gmacs"), [("sknet50", 4.47), ("sknet101", 8.46)])
def test_multiply_accumulates_are_the_papers_within_a_per_cent(name: str, gmacs: float) -> None:
    # The paper gives three digits and does not say whether it counts pooling and batch normalisation: 1 % covers both.
    assert count_macs(build(name), (3, 224, 224)) / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_multiply_accumulates_of_one_convolution_are_those_on_paper() -> None:
    conv = nn.Conv2d(8, 16, 3, padding=1, groups=4)
    assert count_macs(conv, (8, 10, 12)) == 10 * 12 * 16 * (8 // 4) * 3 * 3


@pytest.mark.parametrize(
    ("selective_kernel", "millions"),
    [
        ({"branches": [K3, branch(5, groups=64)]}, 28.03),
        ({"branches": [K3, branch(7, groups=128)]}, 27.99),
        ({"branches": [K3, K7]}, 27.48),
        ({"branches": [K3, K5, K7]}, 29.25),
        ({"branches": [K3, K5], "fuse": "sum"}, 26.46),
        ({"branches": [K3, K5, K7], "fuse": "sum"}, 27.89),
        ({"branches": [K3]}, 25.03),
    ],
    ids=["K3 and real 5x5", "K3 and real 7x7", "K3 K7", "K3 K5 K7", "K3 + K5", "K3 + K5 + K7", "K3 alone"],
)
def test_the_papers_ablations_have_their_parameters(selective_kernel: dict[str, Any], millions: float) -> None:
    # figures with two decimals: half of the last one
    assert count_parameters(build("sknet50", **selective_kernel)) / 1e6 == pytest.approx(millions, abs=0.005)


def test_the_deploy_form_of_sknet50_has_fewer_parameters() -> None:
    spec, _ = load_card("sknet50")
    model = SKNet(spec.network, 3)
    # all 53 + 32 + 16 batch normalisations become one bias a channel, and each gate's second FC loses half of its rows
    assert count_parameters(fold(model)) < count_parameters(model)


def rename(key: str) -> str:
    """The name that one of pytorchcv's parameters has here."""
    for pattern, name in (
        (r"^features\.init_block\.conv\.", "stem."),
        (r"^output\.", "classifier."),
        (r"^features\.stage(\d+)\.unit(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.{int(m[2]) - 1}."),
        (r"\.identity_conv\.", ".shortcut."),
        (r"\.body\.conv1\.", ".reduce."),
        (r"\.body\.conv3\.", ".expand."),
        (r"\.body\.conv2\.branches\.branch(\d)\.", lambda m: f".sk.branches.{int(m[1]) - 2}."),
        (r"\.body\.conv2\.fc1\.conv\.", ".sk.gate.fc1."),
        (r"\.body\.conv2\.fc1\.bn\.", ".sk.gate.bn."),
        (r"\.body\.conv2\.fc2\.", ".sk.gate.fc2."),
    ):
        key = re.sub(pattern, name, key)
    return key


def image() -> Tensor:
    return torch.randn(1, 3, 224, 224, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pytorchcv_reference() -> tuple[nn.Module, Tensor]:
    """pytorchcv's SKNet-50 and its logits of ``image``; its batch normalisation has the statistics of one batch of noise."""
    torch.manual_seed(0)
    model: nn.Module = pytorchcv_sknet50()
    initialise(model, seed=0)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.3, generator=generator)
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(2, 3, 224, 224, generator=generator))
        model.eval().double()
        return model, model(image())


def ours_from(state: dict[str, Tensor]) -> SKNet:
    spec, _ = load_card("sknet50")
    with torch.device("meta"):
        model = SKNet(spec.network, 3)
    model.load_state_dict({rename(key): value for key, value in state.items()}, assign=True)
    return model.eval()


@torch.no_grad()
def relative_error(model: nn.Module, reference: tuple[nn.Module, Tensor]) -> float:
    _, expected = reference
    return float((model(image()) - expected).abs().max() / expected.abs().max())


# float64 rounds at 1e-16; in float32 (6e-8) the same comparison gives 1e-4, so these 50 layers amplify rounding by 2,000.
SAME_FUNCTION = 1e-10


@pytest.mark.parametrize("deploy", [False, True])
def test_sknet50_computes_what_pytorchcvs_does(pytorchcv_reference: tuple[nn.Module, Tensor], deploy: bool) -> None:
    model = ours_from(pytorchcv_reference[0].state_dict())
    assert relative_error(fold(model) if deploy else model, pytorchcv_reference) < SAME_FUNCTION


def test_the_comparison_with_pytorchcv_sees_one_units_branches_swapped(
    pytorchcv_reference: tuple[nn.Module, Tensor],
) -> None:
    model = ours_from(pytorchcv_reference[0].state_dict())
    sk = model.get_submodule("stages.3.2.sk")
    sk.branches = nn.ModuleList(reversed(list(sk.get_submodule("branches").children())))
    assert relative_error(model, pytorchcv_reference) > SAME_FUNCTION


@pytest.mark.parametrize("stride", [1, 2])
def test_any_batch_and_size_gives_one_row_of_logits_an_image(tiny_spec, stride: int) -> None:
    model = SKNet(tiny_spec(stride=stride), 3).eval()
    for batch, height, width in [(1, 16, 16), (3, 17, 31)]:
        assert model(torch.zeros(batch, 3, height, width)).shape == (batch, 5)


def test_total_stride_is_input_pixels_for_each_pixel_of_the_last_map(tiny_spec) -> None:
    spec = tiny_spec(stride=2)
    features: list[Tensor] = []
    model = SKNet(spec, 3).eval()
    model.stages.register_forward_hook(lambda _module, _inputs, output: features.append(output))
    model(torch.zeros(1, 3, 32, 32))
    assert 32 // features[0].shape[-1] == spec.total_stride == 4
    assert load_card("sknet50")[0].network.total_stride == 32


def test_initialisation_is_the_same_for_a_seed_and_another_for_another(tiny_spec) -> None:
    first, again, other = (SKNet(tiny_spec(), 3) for _ in range(3))
    initialise(first, 7)
    initialise(again, 7)
    initialise(other, 8)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_every_map_of_an_untrained_network_fits_fp16() -> None:
    spec, _ = load_card("sknet26")
    model = SKNet(spec.network, 3).eval()
    initialise(model, seed=0)
    largest: list[float] = []
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _module, _inputs, output: largest.append(float(output.abs().max())))
    with torch.no_grad():
        # an image's values after normalisation lie within 3
        model(torch.empty(1, 3, 224, 224).uniform_(-3, 3, generator=torch.Generator().manual_seed(0)))
    assert max(largest) < torch.finfo(torch.float16).max / 2
    assert min(largest) > 0

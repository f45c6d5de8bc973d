"""Every card of the zoo against figures that were not computed by this code."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from pytorchcv.models.resnext import resnext50_32x4d
from pytorchcv.models.sknet import sknet50, sknet101, sknet152
from torch import Tensor, nn

from skdeploy.core.spec import ModelSpec
from skdeploy.zoo.build import build_meta
from skdeploy.zoo.cards import list_cards, load_card
from skdeploy.zoo.fold import count_macs, count_parameters

# "C": computed from the paper's architecture; "own": the original implementation, instantiated, says so.
PARAMETERS = {
    "shufflenet_v2_0.5x-sk": 1_460_264,  # tests/zoo/test_shufflenet.py has the independent part of it
    "shufflenet_v2_1.0x-sk": 2_503_044,  # likewise
    "simclrv2-r50_1x_sk1": 37_264_584,  # own
    "sk_resnet101": 45_678_112,  # own
    "sk_resnet50": 26_154_496,  # own
    "sknet-fashion": 320_298,
    "sknet-ppplang": 10_453_322,  # own
    "sknet101": 48_736_040,  # C, own (pytorchcv)
    "sknet152": 66_295_656,  # own (pytorchcv)
    "sknet26": 16_746_408,  # C
    "sknet29-cifar": 37_638_372,  # the paper's 27.7 M does not follow from its text
    "sknet50": 27_479_784,  # C, own (pytorchcv)
    "sknet50-5x5": 28_029_928,  # C: 28.03 M
    "sknet50-7x7": 27_990_632,  # C: 27.99 M
    "sknet50-k3": 27_479_784,  # dilation costs nothing
    "sknet50-k7": 27_479_784,
    "sknet50-m1": 25_028_904,  # ResNeXt-50 32x4d: torchvision's and pytorchcv's count
    "sknet50-m2-sum": 26_458_664,  # C: 26.46 M
    "sknet50-m3": 29_249_512,  # C: 29.25 M
    "sknet50-m3-sum": 27_888_424,  # C: 27.89 M
    "skresnet-digits": 387_706,
    "timm/skresnet18": 11_958_056,  # own
    "timm/skresnet34": 22_282_376,  # own
    "timm/skresnet50": 25_803_160,  # own
    "timm/skresnet50d": 25_822_392,  # own
    "timm/skresnext50_32x4d": 27_479_784,  # own
}
# The paper's, to three digits. All other cards give what was counted.
PUBLISHED_MACS = {"sknet50", "sknet101"}

every_card = pytest.mark.parametrize("name", PARAMETERS)


def spec_of(name: str, **changes: Any) -> ModelSpec:
    """A card, with some keys of its network replaced; a key of a nested table is written table__key."""
    spec, _ = load_card(name)
    network = spec.network.model_dump()
    for path, value in changes.items():
        *tables, key = path.split("__")
        table: Any = network
        for part in tables:
            table = table[int(part) if part.isdigit() else part]
        assert key in table
        table[key] = value
    return ModelSpec.model_validate(spec.model_dump(by_alias=True) | {"network": network, "labels": []})


@cache
def network_of(name: str) -> nn.Module:
    """A card's network, on torch's device that computes shapes only. Do not change it."""
    return build_meta(spec_of(name)).eval()


def test_every_card_has_its_figures_here() -> None:
    assert {spec.name for spec, _ in list_cards()} == set(PARAMETERS)


@every_card
def test_a_card_has_exactly_the_parameters_of_its_original(name: str) -> None:
    assert count_parameters(network_of(name)) == PARAMETERS[name] == spec_of(name).reference.parameters


def arithmetic(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates from output sizes: each output value takes one for each weight that leads to it."""
    counted: list[int] = []

    def record(module: nn.Module, _inputs: object, output: Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            counted.append(output[0].numel() * module.weight[0].numel())

    hooks = [module.register_forward_hook(record) for module in model.modules()]
    with torch.inference_mode():
        model(torch.zeros(1, *shape, device="meta"))
    for hook in hooks:
        hook.remove()
    return sum(counted)


@cache
def macs_of(name: str) -> int:
    """Of a card's network at the size of its images."""
    return arithmetic(network_of(name), spec_of(name).input.shape)


@every_card
def test_a_card_has_the_multiply_accumulates_that_it_states(name: str) -> None:
    spec = spec_of(name)
    counted = macs_of(name)
    assert counted == count_macs(network_of(name), spec.input.shape)
    # The paper does not say whether it counts pooling and batch normalisation: 1 % covers both.
    allowed = 0.01 if name in PUBLISHED_MACS else 0
    assert spec.reference.macs == pytest.approx(counted, rel=allowed, abs=0)


# What timm 1.0.31 builds under these names, counted by torch's FlopCounterMode; halved.
@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("timm/skresnet18", 1_814_337_536),
        ("timm/skresnet34", 3_664_237_568),
        ("timm/skresnet50", 4_089_422_336),
        ("timm/skresnet50d", 4_329_062_912),
        ("timm/skresnext50_32x4d", 4_462_710_784),
    ],
)
def test_timms_cards_have_the_multiply_accumulates_of_timms_networks(name: str, macs: int) -> None:
    assert spec_of(name).reference.macs == macs


@pytest.mark.parametrize(
    ("name", "make"),
    [("sknet50", sknet50), ("sknet101", sknet101), ("sknet152", sknet152), ("sknet50-m1", resnext50_32x4d)],
)
def test_pytorchcvs_network_has_the_parameters_and_multiply_accumulates_of_the_card(
    name: str, make: Callable[[], nn.Module]
) -> None:
    with torch.device("meta"):
        original = make()
    assert count_parameters(original) == PARAMETERS[name]
    assert spec_of(name).input.shape == (3, 224, 224)
    assert count_macs(original, (3, 224, 224)) == macs_of(name)


# What other depths, widths and class counts of the same code have, as their authors' implementations say when instantiated.
@pytest.mark.parametrize(
    ("name", "changes", "parameters"),
    [
        # developer0hye's and syt2's: a biased FC for each branch
        ("sknet26", {"selective_kernel__gate__select_bias": True}, 16_754_088),
        ("sknet50", {"selective_kernel__gate__select_bias": True}, 27_494_888),
        ("sknet101", {"selective_kernel__gate__select_bias": True}, 48_768_552),
        # the official Caffe model, whose conv3_x has a gate of 16
        ("sknet101", {"stages__1__gate_width": 16}, 48_686_760),
        ("sknet-ppplang", {"classes": 100}, 10_545_572),
        ("sknet-ppplang", {"classes": 1000}, 11_468_072),
        ("simclrv2-r50_1x_sk1", {"stages__2__units": 23}, 66_711_304),
        ("simclrv2-r50_1x_sk1", {"stages__1__units": 8, "stages__2__units": 36}, 90_989_896),
    ],
)
def test_variants_that_a_card_describes_have_the_parameters_of_their_originals(
    name: str, changes: dict[str, Any], parameters: int
) -> None:
    assert count_parameters(build_meta(spec_of(name, **changes))) == parameters


def test_simclrv2_of_twice_the_width_is_a_card_too() -> None:
    double = {f"stages__{i}__{key}": c * 128 for i, c in enumerate((1, 2, 4, 8)) for key in ("middle_channels",)}
    double |= {f"stages__{i}__out_channels": c * 512 for i, c in enumerate((1, 2, 4, 8))}
    spec = spec_of("simclrv2-r50_1x_sk1", stem__channels=128, stem__deep=[64, 64], **double)
    assert count_parameters(build_meta(spec)) == 144_403_048  # r50_2x_sk1, instantiated


@every_card
def test_a_card_builds_a_network_for_its_own_input(name: str) -> None:
    spec = spec_of(name)
    features: list[Tensor] = []
    model = network_of(name)
    hook = model.get_submodule("stages").register_forward_hook(lambda _module, _inputs, out: features.append(out))
    with torch.inference_mode():
        logits = model(torch.zeros(2, *spec.input.shape, device="meta"))
    hook.remove()
    assert logits.shape == (2, spec.network.classes)
    # halving rounds upwards, at every stride of two
    height, width = features[0].shape[2:]
    stride = spec.network.total_stride
    assert (height, width) == (-(-spec.input.height // stride), -(-spec.input.width // stride))


@every_card
def test_a_card_cites_its_source_and_licence(name: str) -> None:
    source = spec_of(name).source
    assert source.paper
    assert source.licence
    assert source.url.startswith("https://")

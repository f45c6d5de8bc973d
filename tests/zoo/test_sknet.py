"""SKNet: its sizes and its untrained weights.

``test_zoo.py`` has the paper's figures; what other implementations compute is in ``tests/checkpoints``.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from skdeploy.zoo.build import initialise
from skdeploy.zoo.cards import load_card
from skdeploy.zoo.fold import count_macs, count_parameters, fold
from skdeploy.zoo.sknet import SKNet


def test_multiply_accumulates_of_one_convolution_are_those_on_paper() -> None:
    conv = nn.Conv2d(8, 16, 3, padding=1, groups=4)
    assert count_macs(conv, (8, 10, 12)) == 10 * 12 * 16 * (8 // 4) * 3 * 3


def test_the_deploy_form_of_sknet50_has_fewer_parameters() -> None:
    spec, _ = load_card("sknet50")
    model = SKNet(spec.network, 3)
    # all 53 + 32 + 16 batch normalisations become one bias a channel, and each gate's second FC loses half of its rows
    assert count_parameters(fold(model)) < count_parameters(model)


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

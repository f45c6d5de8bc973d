"""pppLang's variant against its unit, written out with torch's functions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from skdeploy.core.errors import CardError
from tests.zoo.tiny_networks import DEEP, K3, REAL5, VARIANTS, biased, build, images, live, network

pytestmark = pytest.mark.usefixtures("one_thread")

State = dict[str, Tensor]


def normalised(x: Tensor, state: State, name: str) -> Tensor:
    keys = ("running_mean", "running_var", "weight", "bias")
    return functional.batch_norm(x, *(state[f"{name}.{key}"] for key in keys))


def convolved(x: Tensor, state: State, name: str, **options: int) -> Tensor:
    y = functional.conv2d(x, state[f"{name}.conv.weight"], state[f"{name}.conv.bias"], **options)
    return normalised(y, state, f"{name}.bn")


def unit(x: Tensor, state: State, name: str, stride: int) -> Tensor:
    """conv, norm, split (3x3 and a real 5x5), select, norm, conv, norm; no ReLU but the branches' and the one at the end."""
    y = convolved(x, state, f"{name}.reduce")
    branches = [
        convolved(y, state, f"{name}.sk.branches.{index}", stride=stride, padding=index + 1, groups=4).relu()
        for index in range(2)
    ]
    s = sum(branches).mean((2, 3))
    z = s @ state[f"{name}.sk.gate.fc1.weight"][:, :, 0, 0].T + state[f"{name}.sk.gate.fc1.bias"]
    logits = z @ state[f"{name}.sk.gate.fc2.weight"][:, :, 0, 0].T + state[f"{name}.sk.gate.fc2.bias"]
    weights = torch.stack(logits.chunk(2, 1)).softmax(0)[..., None, None]
    v = weights[0] * branches[0] + weights[1] * branches[1]
    y = convolved(normalised(v, state, f"{name}.norm"), state, f"{name}.expand")
    shortcut = x
    if f"{name}.shortcut.conv.weight" in state:
        shortcut = convolved(x, state, f"{name}.shortcut", stride=stride)
    return (y + shortcut).relu()


def network_by_hand(state: State) -> Tensor:
    y = convolved(images(), state, "stem", padding=1)  # no ReLU, no pool
    for stage, stride in enumerate((1, 2)):
        for index in range(2):
            y = unit(y, state, f"stages.{stage}.{index}", stride if index == 0 else 1)
    return functional.linear(y.mean((2, 3)), state["classifier.weight"], state["classifier.bias"])


# float64 rounds at 1e-16; a dozen layers of a hundred terms amplify that to about 1e-13.
SAME_FUNCTION = 1e-10


@torch.no_grad()
def test_the_network_is_the_one_written_out_here() -> None:
    model = live(VARIANTS["linear_sknet"])
    expected = network_by_hand(model.state_dict())
    assert (model(images()) - expected).abs().max() < SAME_FUNCTION * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("name", ["stem", "stages.0.0.reduce", "stages.1.1.norm", "stages.1.0.sk.gate.squeeze"])
def test_the_comparison_sees_a_relu_too_many(name: str) -> None:
    model = live(VARIANTS["linear_sknet"])
    expected = network_by_hand(model.state_dict())
    model.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: output.relu())
    assert (model(images()) - expected).abs().max() > SAME_FUNCTION * expected.abs().max()


def test_a_stage_may_halve_the_size_and_keep_the_channels() -> None:
    stages = [{"units": 1, "middle_channels": 8, "out_channels": 8, "stride": 2}]
    model = build(network("linear_sknet", *biased(K3, REAL5), stages=stages)).eval()
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 5)


def test_a_deep_stem_is_refused() -> None:
    with pytest.raises(CardError, match="stem of linear_sknet is one convolution"):
        build(network("linear_sknet", *biased(K3, REAL5), stem=DEEP))

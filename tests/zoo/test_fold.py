"""The deploy form computes what the training form computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from skdeploy.spec import NetworkSpec
from skdeploy.zoo.fold import FoldedGate, fold
from skdeploy.zoo.selective_kernel import Gate, SelectiveKernelConv
from skdeploy.zoo.sknet import SKNet

# Both forms are equal in real arithmetic; float64 rounds at 1e-16, and a dozen layers of a hundred terms each amplify that to
# about 1e-13. Any wrong coefficient shows in the first digits.
RELATIVE = 1e-10


def live(spec: NetworkSpec) -> SKNet:
    """A network as after training: every batch normalisation scales, shifts and has the statistics of its own input.

    With arbitrary statistics, a whole gate may be dead: then its branches have equal weights and a test of it tests nothing.
    """
    torch.manual_seed(1)
    model = SKNet(spec, 3).double()
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.5, 1.0, generator=generator)  # a third of the scales is negative
            nn.init.normal_(module.bias, 0.0, 0.5, generator=generator)
            module.momentum = 1.0  # the running statistics are those of the one batch below
        elif isinstance(module, Gate):
            nn.init.normal_(module.fc2.weight, 0.0, 1.0, generator=generator)
    with torch.no_grad():
        model.train()(images())
    return model.eval()


def images() -> Tensor:
    return torch.randn(4, 3, 19, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def relative_error(model: nn.Module, reference: nn.Module) -> float:
    expected = reference(images())
    return float((model(images()) - expected).abs().max() / expected.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("branches", [2, 3])
def test_the_gates_of_the_networks_compared_here_are_alive(tiny_spec, branches: int) -> None:
    spread: list[float] = []

    def record(gate: nn.Module, statistics: tuple[Tensor], weights: list[Tensor]) -> None:
        spread.append(float(weights[0].std(0).mean()))

    model = live(tiny_spec(branches))
    gates = [module for module in model.modules() if isinstance(module, Gate)]
    for gate in gates:
        gate.register_forward_hook(record)
    model(images())
    assert len(spread) == len(gates) == 3
    assert min(spread) > 0.01  # of a weight between 0 and 1: images differ in their attention by a per cent or more


@pytest.mark.parametrize("fuse", ["attention", "sum"])
@pytest.mark.parametrize("branches", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_deploy_form_is_the_training_form(tiny_spec, branches: int, stride: int, fuse: str) -> None:
    model = live(tiny_spec(branches, stride, fuse=fuse))
    assert relative_error(fold(model), model) < RELATIVE


@pytest.mark.parametrize("branches", [2, 3])
def test_the_comparison_sees_a_wrong_epsilon_in_one_batch_normalisation(tiny_spec, branches: int) -> None:
    model = live(tiny_spec(branches))
    wrong = copy.deepcopy(model)
    wrong.stages[0][0].sk.branches[0].bn.eps = 1.1e-5  # the default is 1e-5
    assert relative_error(fold(wrong), model) > RELATIVE


def test_the_comparison_sees_a_wrong_epsilon_in_a_gate(tiny_spec) -> None:
    model = live(tiny_spec(2))
    wrong = copy.deepcopy(model)
    wrong.stages[1][0].sk.gate.bn.eps = 1.1e-5
    assert relative_error(fold(wrong), model) > RELATIVE


@pytest.mark.parametrize("branches", [2, 3])
def test_the_comparison_sees_swapped_branches(tiny_spec, branches: int) -> None:
    model = live(tiny_spec(branches))
    folded = fold(model)
    sk = folded.stages[1][1].sk
    assert isinstance(sk, SelectiveKernelConv)
    sk.branches = nn.ModuleList(reversed(list(sk.branches)))
    assert relative_error(folded, model) > RELATIVE


def test_a_folded_network_has_no_batch_normalisation_and_learns_nothing(tiny_spec) -> None:
    folded = fold(live(tiny_spec(2)))
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d | Gate)]
    assert [module for module in folded.modules() if isinstance(module, FoldedGate)]
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_folding_leaves_the_model_as_it_was(tiny_spec) -> None:
    model = live(tiny_spec(3)).train()
    before = copy.deepcopy(model.state_dict())
    fold(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_folded_network_shares_no_memory_with_its_model(tiny_spec) -> None:
    model = live(tiny_spec(3))
    theirs = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not theirs & {tensor.data_ptr() for tensor in fold(model).state_dict().values()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_folded_network_keeps_the_parameters_dtype(tiny_spec, dtype: torch.dtype) -> None:
    folded = fold(live(tiny_spec(2)).to(dtype))
    assert {tensor.dtype for tensor in folded.parameters()} == {dtype}


def test_a_gate_of_two_is_one_sigmoid_with_half_of_the_weights() -> None:
    torch.manual_seed(0)
    gate = Gate(channels=8, branches=2, width=4).double().eval()
    folded = FoldedGate(gate)
    assert folded.fc2.weight.numel() == gate.fc2.weight.numel() // 2
    z = torch.randn(3, 4, dtype=torch.float64)
    p, q = (z @ half[:, :, 0, 0].T for half in gate.fc2.weight.chunk(2))
    expected = torch.stack([p, q]).softmax(0)[0]
    # softmax and sigmoid each round a few times at 1e-16
    torch.testing.assert_close(folded.fc2(z[:, :, None, None]).sigmoid()[:, :, 0, 0], expected, rtol=0, atol=1e-14)

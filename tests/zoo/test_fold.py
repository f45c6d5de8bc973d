"""The deploy form computes what the training form computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from skdeploy.core.architecture import GateSpec, NetworkSpec
from skdeploy.zoo.fold import FoldedGate, fold, fold_into_next
from skdeploy.zoo.selective_kernel import Gate, SelectiveKernelConv
from tests.zoo.tiny_networks import VARIANTS, images, live, relative_error

# Both forms are equal in real arithmetic; float64 rounds at 1e-16, and a dozen layers of a hundred terms each amplify that to
# about 1e-13. Any wrong coefficient shows in the first digits.
RELATIVE = 1e-10

pytestmark = pytest.mark.usefixtures("one_thread")


every_variant = pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS.keys())


@torch.no_grad()
@every_variant
def test_the_gates_of_the_networks_compared_here_are_alive(spec: NetworkSpec) -> None:
    spread: list[float] = []

    def record(gate: nn.Module, statistics: tuple[Tensor], weights: list[Tensor]) -> None:
        spread.extend(float(weight.std(0).mean()) for weight in weights)

    model = live(spec)
    gates = [module for module in model.modules() if isinstance(module, Gate)]
    for gate in gates:
        gate.register_forward_hook(record)
    model(images())
    kernels = spec.selective_kernel
    selects = kernels.fuse == "attention" and len(kernels.branches) > 1
    assert len(gates) == (sum(stage.units for stage in spec.stages) if selects else 0)
    assert len(spread) == len(gates) * (len(kernels.branches) - 1)
    assert min(spread, default=1.0) > 0.003  # of a weight in 0..1; a dead gate has exactly 0


@every_variant
def test_the_deploy_form_of_every_family_is_its_training_form(spec: NetworkSpec) -> None:
    model = live(spec)
    folded = fold(model)
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d | Gate)]
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert relative_error(folded, model) < RELATIVE


@torch.no_grad()
@every_variant
def test_the_comparison_sees_a_wrong_value_in_any_parameter_of_the_deploy_form(spec: NetworkSpec) -> None:
    model = live(spec)
    folded = fold(model)
    expected = model(images())
    generator = torch.Generator().manual_seed(3)
    for name, parameter in folded.named_parameters():
        right = parameter.clone()
        # of random signs: the same number added to all branches' logits would change nothing
        parameter += 1e-4 * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
        assert (folded(images()) - expected).abs().max() > RELATIVE * expected.abs().max(), name
        parameter.copy_(right)


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("sknet", "stages.0.0.sk.branches.0.bn"),
        ("sknet of three branches", "stages.0.0.sk.branches.2.bn"),
        ("sknet", "stages.1.0.sk.gate.bn"),
        ("sknet with a biased and normalised gate", "stages.1.0.sk.gate.bn"),
        ("sknet with a split input", "stages.1.0.sk.branches.1.bn"),
        ("resnet of basic blocks", "stages.0.0.expand.bn"),
        ("resnet with a deep stem and average pools", "stem.0.bn"),
        ("resnet with a deep stem and average pools", "stages.1.0.shortcut.project.bn"),
        ("resnet with padded average pools", "stages.0.0.shortcut.project.bn"),
        ("linear_sknet", "stages.0.0.norm"),
        ("linear_sknet as a plain sum", "stages.1.1.norm"),
        ("shufflenet_v2", "stages.0.0.passed.0.bn"),
        ("shufflenet_v2", "head.bn"),
    ],
)
def test_the_comparison_sees_a_wrong_epsilon_in_one_batch_normalisation(variant: str, name: str) -> None:
    model = live(VARIANTS[variant])
    wrong = copy.deepcopy(model)
    wrong.get_submodule(name).eps = 1.1e-5  # the default is 1e-5
    assert relative_error(fold(wrong), model) > RELATIVE


@pytest.mark.parametrize("branches", [2, 3])
def test_the_comparison_sees_swapped_branches(tiny_spec, branches: int) -> None:
    model = live(tiny_spec(branches))
    folded = fold(model)
    sk = folded.stages[1][1].sk
    assert isinstance(sk, SelectiveKernelConv)  # nn.Module's attributes have no type: the unit's is known here
    sk.branches = nn.ModuleList(reversed(list(sk.branches)))
    assert relative_error(folded, model) > RELATIVE


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


def test_a_gate_without_norm_keeps_its_biases() -> None:
    """softmax(A (W s + b) + c), written out."""
    torch.manual_seed(0)
    gate = Gate(8, 2, 4, GateSpec(norm=False, bias=True, select_bias=True)).double().eval()
    s = torch.randn(3, 8, dtype=torch.float64)
    z = s @ gate.fc1.weight[:, :, 0, 0].T + gate.fc1.bias
    assert (z < 0).any()  # a ReLU between the two would show
    p, q = (z @ a[:, :, 0, 0].T + c for a, c in zip(gate.fc2.weight.chunk(2), gate.fc2.bias.chunk(2), strict=True))
    expected = torch.stack([p, q]).softmax(0)[0]
    for form in (gate, FoldedGate(gate)):
        (weight,) = form(s[:, :, None, None])
        torch.testing.assert_close(weight[:, :, 0, 0], expected, rtol=0, atol=1e-14)


@torch.no_grad()
def test_a_batch_normalisation_folds_into_the_convolution_after_it() -> None:
    torch.manual_seed(0)
    bn, conv = nn.BatchNorm2d(6).double().eval(), nn.Conv2d(6, 4, 1).double()
    for tensor in (bn.weight, bn.bias, bn.running_mean):
        assert tensor is not None
        tensor.normal_()
    bn.running_var.uniform_(0.5, 2.0)
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    expected = conv(nn.functional.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps))
    fold_into_next(bn, conv)
    # float64 rounds at 2e-16, a few times over six terms of about 1
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-13)

"""The operator against the paper's text: split, fuse, select, each written out naively here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from skdeploy.core.architecture import BranchSpec, SelectiveKernelSpec
from skdeploy.core.errors import CardError
from skdeploy.zoo.selective_kernel import (
    Gate,
    SelectiveKernelConv,
    attention,
    branch_softmax,
    fuse,
    select,
    selective_kernel,
)

# float64 has 2**-52 = 2e-16 a rounding; these sums have under a thousand terms of about 1.
ROUNDING = 1e-12


def kernels(branches: int, *, activation: bool = True, fuse: str = "attention") -> SelectiveKernelSpec:
    return SelectiveKernelSpec.model_validate(
        {
            "branches": [
                BranchSpec(kernel=3, dilation=m, groups=2, activation=activation) for m in range(1, branches + 1)
            ],
            "reduction": 2,
            "min_width": 3,
            "fuse": fuse,
        }
    )


def maps(branches: int, generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(3, 8, 5, 7, dtype=torch.float64, generator=generator) for _ in range(branches)]


def naive_select(branches: list[Tensor], logits: Tensor) -> Tensor:
    """V = sum_m a_m U_m with a = softmax over m of (N, M, C): equations 5 and 6 of the paper, on a rank-5 stack."""
    weights = logits.softmax(1)[..., None, None]
    return (torch.stack(branches, dim=1) * weights).sum(1)


@pytest.mark.parametrize("branches", [2, 3, 4])
def test_select_is_the_papers_weighted_sum_of_a_stack(branches: int) -> None:
    generator = torch.Generator().manual_seed(branches)
    given = maps(branches, generator)
    logits = torch.randn(3, branches, 8, dtype=torch.float64, generator=generator)
    weights = branch_softmax(logits.reshape(3, branches * 8, 1, 1), branches, 8)
    torch.testing.assert_close(select(given, weights), naive_select(given, logits), rtol=0, atol=ROUNDING)


def test_select_with_the_branches_swapped_is_another_function() -> None:
    generator = torch.Generator().manual_seed(0)
    given = maps(2, generator)
    logits = torch.randn(3, 2, 8, dtype=torch.float64, generator=generator)
    weights = branch_softmax(logits.reshape(3, 16, 1, 1), 2, 8)
    assert (select(given[::-1], weights) - naive_select(given, logits)).abs().max() > 0.1


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_fuse_is_the_spatial_mean_of_the_sum(branches: int) -> None:
    given = maps(branches, torch.Generator().manual_seed(branches))
    expected = torch.stack(given).sum(0).mean((2, 3), keepdim=True)
    torch.testing.assert_close(fuse(given), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("branches", [2, 3])
def test_attention_is_positive_and_sums_to_one_over_the_branches(branches: int) -> None:
    logits = 5 * torch.randn(4, branches * 6, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shares = attention(branch_softmax(logits, branches, 6))
    assert shares.shape == (4, branches, 6)
    torch.testing.assert_close(shares.sum(1), torch.ones(4, 6, dtype=torch.float64), rtol=0, atol=ROUNDING)
    assert shares.min() > 0
    torch.testing.assert_close(shares, logits.reshape(4, branches, 6).softmax(1), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("branches", [2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_convolution_is_the_operator_of_section_3_1(branches: int, stride: int) -> None:
    torch.manual_seed(branches)
    layer = selective_kernel(kernels(branches), 8, 12, stride).double().eval()
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    split = [
        nn.functional.conv2d(x, branch.conv.weight, None, stride, padding=m, dilation=m, groups=2)
        .div(torch.tensor(1 + 1e-5, dtype=torch.float64).sqrt())  # a new batch normalisation: mean 0, variance 1
        .relu()
        for m, branch in enumerate(layer.branches, start=1)
    ]
    gate = layer.gate
    assert isinstance(gate, Gate)  # else a gate of another kind, whose formula is another
    s = sum(split).mean((2, 3))
    z = (s @ gate.fc1.weight[:, :, 0, 0].T / (1 + 1e-5) ** 0.5).relu()
    logits = torch.stack([z @ a_m[:, :, 0, 0].T for a_m in gate.fc2.weight.chunk(branches)], dim=1)
    torch.testing.assert_close(layer(x), naive_select(split, logits), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("branches", [1, 3])
def test_the_plain_sum_ablation_adds_the_branches(branches: int) -> None:
    layer = selective_kernel(kernels(branches, fuse="sum"), 8, 8).double().eval()
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert layer.gate is None
    torch.testing.assert_close(layer(x), sum(branch(x) for branch in layer.branches), rtol=0, atol=ROUNDING)


def test_one_branch_has_no_gate_because_its_softmax_is_one() -> None:
    assert selective_kernel(kernels(1), 8, 8).gate is None


def test_a_branch_without_activation_lets_negative_values_through() -> None:
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(3)
    assert selective_kernel(kernels(1, activation=False), 8, 8)(x).min() < 0
    assert selective_kernel(kernels(1, activation=True), 8, 8)(x).min() >= 0


@pytest.mark.parametrize("size", [(5, 5), (8, 11)])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 2), (3, 3), (5, 1), (7, 1), (5, 2)])
def test_every_kernel_keeps_the_size_at_stride_one_and_halves_it_upwards_at_two(
    kernel: int, dilation: int, size: tuple[int, int]
) -> None:
    spec = SelectiveKernelSpec(branches=(BranchSpec(kernel=kernel, dilation=dilation), BranchSpec(kernel=3)))
    x = torch.zeros(2, 4, *size)
    assert selective_kernel(spec, 4, 4, 1)(x).shape[2:] == size
    assert selective_kernel(spec, 4, 4, 2)(x).shape[2:] == ((size[0] + 1) // 2, (size[1] + 1) // 2)


def test_the_gate_width_is_c_over_r_but_not_less_than_l() -> None:
    spec = SelectiveKernelSpec(branches=(BranchSpec(kernel=3),))  # r = 16 and L = 32 by default, as in the paper
    assert [spec.gate_width(channels) for channels in (128, 256, 512, 1024)] == [32, 32, 32, 64]


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(CardError, match="2 groups does not divide 7 -> 8 channels"):
        selective_kernel(kernels(2), 7, 8)


def test_a_gate_over_one_branch_or_no_branch_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="two branches"):
        SelectiveKernelConv([nn.Identity()], Gate(8, 1, 4))
    with pytest.raises(ValueError, match="at least one branch"):
        SelectiveKernelConv([], None)

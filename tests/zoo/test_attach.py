"""An attached network with all attention on branch one is the network it was made from."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorchcv.models.mobilenetv2 import mobilenetv2_w1, mobilenetv2_wd4
from pytorchcv.models.preresnet import preresnet18
from pytorchcv.models.resnet import resnet18
from pytorchcv.models.resnext import resnext50_32x4d
from pytorchcv.models.shufflenetv2 import shufflenetv2_wd2
from torch import Tensor, nn
from torch.nn import functional

from skdeploy.core.errors import UsageError
from skdeploy.zoo.attach import ExtraBranch, attach_selective_kernels, convolutions_to_replace
from skdeploy.zoo.fold import count_parameters
from skdeploy.zoo.selective_kernel import ConvNormAct, attention
from tests.zoo.attach_networks import SAME_FUNCTION, Net, build, difference, images, live, norm, selective

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORKS = [resnext50_32x4d, mobilenetv2_wd4, shufflenetv2_wd2, resnet18, preresnet18]


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_with_all_attention_on_branch_one_the_network_computes_what_it_did(make: Callable[..., nn.Module]) -> None:
    model = live(build(make))
    attached = attach_selective_kernels(model)
    assert len(selective(attached)) > 10
    assert difference(attached, model) < SAME_FUNCTION
    assert difference(attached, model, deploy=True) < SAME_FUNCTION


def test_the_comparison_sees_the_other_branch_and_a_changed_batch_normalisation() -> None:
    model = live(build(mobilenetv2_wd4))
    attached = attach_selective_kernels(model)
    assert difference(attached, model, branch=1) > 0.01
    first = next(iter(selective(attached).values()))
    first.branches[0].bn.eps = 1.001e-5
    assert difference(attached, model) > SAME_FUNCTION


# By hand, for a convolution of C channels in G groups: a second 3x3 has 9 C C / G weights and its batch normalisation 2 C; the
# gate's first FC has C d, its batch normalisation 2 d, its second FC 2 C d, with d = max(C / 16, 32).
def growth(channels: int, groups: int) -> int:
    width = max(channels // 16, 32)
    return 9 * channels * channels // groups + 2 * channels + 3 * channels * width + 2 * width


RESNEXT50 = [(128, 32)] * 3 + [(256, 32)] * 4 + [(512, 32)] * 6 + [(1024, 32)] * 3
# t c n s of MobileNetV2's Table 2: the depthwise convolutions have t times the channels that come in
MOBILENETV2 = [32, 96, 144, 144, *[192] * 3, *[384] * 4, *[576] * 3, *[960] * 3]
# ShuffleNetV2 0.5x: the first unit of a stage has two of them, the first on all channels that come in
SHUFFLENETV2 = [24, *[24] * 4, 48, *[48] * 8, 96, *[96] * 4]


@pytest.mark.parametrize(
    ("make", "convolutions"),
    [
        (resnext50_32x4d, RESNEXT50),
        (mobilenetv2_w1, [(channels, channels) for channels in MOBILENETV2]),
        (shufflenetv2_wd2, [(channels, channels) for channels in SHUFFLENETV2]),
    ],
    ids=["resnext50", "mobilenetv2", "shufflenetv2"],
)
def test_parameters_grow_as_computed_by_hand(
    make: Callable[..., nn.Module], convolutions: list[tuple[int, int]]
) -> None:
    with torch.device("meta"):
        model = make()
    attached = attach_selective_kernels(model)
    assert len(selective(attached)) == len(convolutions)
    expected = sum(growth(channels, groups) for channels, groups in convolutions)
    assert count_parameters(attached) - count_parameters(model) == expected


def test_the_model_is_left_as_it_was_and_shares_no_memory() -> None:
    model = live(build(mobilenetv2_wd4)).train()
    before, text = copy.deepcopy(model.state_dict()), str(model)
    attached = attach_selective_kernels(model)
    assert str(model) == text
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    theirs = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not theirs & {tensor.data_ptr() for tensor in attached.state_dict().values()}
    assert all(module.training for module in attached.modules())


def test_new_layers_have_the_dtype_and_mode_of_the_convolution() -> None:
    attached = attach_selective_kernels(build(mobilenetv2_wd4).half().eval())
    assert {parameter.dtype for parameter in attached.parameters()} == {torch.float16}
    assert not any(module.training for module in attached.modules() if not isinstance(module, nn.Identity))


def test_new_weights_depend_on_the_seed_alone() -> None:
    model = build(mobilenetv2_wd4)
    first = attach_selective_kernels(model).state_dict()
    torch.manual_seed(99)
    again, other = attach_selective_kernels(model).state_dict(), attach_selective_kernels(model, seed=1).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    differing = {key for key in first if not torch.equal(first[key], other[key])}
    assert differing
    assert all(re.search(r"branches\.1\.conv\.weight$|gate\.fc[12]\.weight$", key) for key in differing)


@pytest.mark.parametrize(
    "convolution",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2, "groups": 4},
        {"kernel_size": 3, "padding": 1, "stride": (2, 1), "groups": 8, "bias": False},
        {"kernel_size": 5, "padding": 2, "stride": 3},
        {"kernel_size": 3},
        {"kernel_size": 3, "padding": (1, 0), "stride": 2},
        {"kernel_size": 3, "padding": (0, 2), "dilation": (1, 2)},
        {"kernel_size": (1, 3), "padding": (0, 1)},
        {"kernel_size": (7, 1), "padding": "same"},
        {"kernel_size": 3, "padding": "same", "dilation": 3},
        {"kernel_size": 3, "padding": "valid", "stride": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("normalised", [False, True])
def test_branches_take_over_the_geometry(convolution: dict[str, Any], normalised: bool) -> None:
    torch.manual_seed(0)
    padded = nn.ZeroPad2d((0, 1, 2, 0))
    model = live(Net(padded, nn.Conv2d(8, 16, **convolution), *(norm(16) if normalised else [])))
    extra = [
        ExtraBranch(),
        ExtraBranch(dilation=1),
        ExtraBranch(dilation=3, groups=2),
        ExtraBranch(kernel=9, dilation=2),
    ]
    attached = attach_selective_kernels(model, branches=extra)
    [unit] = selective(attached).values()
    groups = convolution.get("groups", 1)
    assert [branch.conv.groups for branch in unit.branches] == [groups, groups, groups, 2, groups]
    own = unit.branches[0].conv.dilation
    for branch, times in zip(unit.branches, (1, 2, 1, 3, 2), strict=True):
        assert branch.conv.dilation == (times * own[0], times * own[1])
    x = torch.randn(2, 8, 21, 24, dtype=torch.float64)
    assert len({branch(x).shape for branch in unit.branches}) == 1
    assert difference(attached, model) < SAME_FUNCTION
    assert difference(attached, model, deploy=True) < SAME_FUNCTION


def test_a_branch_without_batch_normalisation_has_a_bias_like_the_trained_one() -> None:
    plain, normalised = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    attached = attach_selective_kernels(Net(plain, nn.Sigmoid(), normalised, *norm()))
    bare, full = selective(attached).values()
    assert [type(layer) for layer in bare.branches[1]] == [nn.Conv2d, nn.Sigmoid]
    assert not bare.branches[1].conv.bias.any()
    assert isinstance(full.branches[1], ConvNormAct)  # this is the claim: the norm went into the branch
    assert full.branches[1].conv.bias is None
    assert isinstance(attached.layers[1], nn.Identity)  # this is the claim: and left its own place


class Block(nn.Module):
    """A residual block whose ReLU is shared by three places, or called as a function."""

    def __init__(self, relu: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


SHARED = {
    "module": (nn.ReLU(inplace=True), nn.ReLU),
    "function": (functional.relu, nn.ReLU),
    "method": (lambda x: x.relu(), nn.ReLU),
    "relu6": (functional.relu6, nn.ReLU6),
    "not a clamp": (functional.silu, None),
}


@pytest.mark.parametrize(("relu", "ending"), SHARED.values(), ids=SHARED)
def test_a_shared_activation_stays_and_each_branch_gets_its_own_if_that_changes_nothing(
    relu: Callable[[Tensor], Tensor], ending: type[nn.Module] | None
) -> None:
    model = live(Net(Block(relu)))
    first, second = convolutions_to_replace(model)
    assert (first.batch_norm, first.activation) == ("layers.0.bn1", None)
    assert first.nonlinearity is None if ending is None else type(first.nonlinearity) is ending
    assert (second.batch_norm, second.activation, second.nonlinearity) == ("layers.0.bn2", None, None)
    attached = attach_selective_kernels(model)
    assert difference(attached, model) < SAME_FUNCTION
    seen: list[tuple[Tensor, Tensor]] = []
    attached.layers[0].conv1.register_forward_hook(
        lambda _module, _inputs, output: seen.append((output.clone(), output))
    )
    with torch.no_grad():
        attached(images())
    before, after = seen[0]
    assert ending is None or torch.equal(before, relu(after))


def test_activations_that_are_used_elsewhere_and_normalisation_that_cannot_fold_do_not_move() -> None:
    shared = nn.SiLU()
    layers = [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, track_running_stats=False), shared, shared]
    model = Net(*layers).double().eval()
    [site] = convolutions_to_replace(model)
    assert (site.batch_norm, site.activation, site.nonlinearity) == (None, None, None)
    assert str(site) == "layers.0 (with nothing else; branches end in no activation)"
    assert difference(attach_selective_kernels(model), model) < SAME_FUNCTION


class Watched(nn.Module):
    """Normalises twice with the same module, and adds what the second convolution gave before that."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)
        self.shared, self.own = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.alias = self.own3 = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.shared(self.conv1(x)))
        return self.own3(self.conv3(self.shared(self.own(y) + y)))


def test_batch_normalisation_that_serves_others_too_does_not_move() -> None:
    model = live(Net(Watched()))
    assert [site.batch_norm for site in convolutions_to_replace(model)] == [None, None, None]
    assert difference(attach_selective_kernels(model), model) < SAME_FUNCTION


def test_new_batch_normalisation_has_the_constants_of_the_trained_one_and_no_statistics() -> None:
    trained = nn.BatchNorm2d(8, eps=1e-3, momentum=0.01)
    attached = attach_selective_kernels(live(Net(nn.Conv2d(8, 8, 3), trained, nn.ReLU())))
    [unit] = selective(attached).values()
    first, new = unit.branches
    assert (new.bn.eps, new.bn.momentum) == (1e-3, 1.0)  # live() sets the momentum
    assert not torch.equal(first.bn.running_mean, new.bn.running_mean)
    assert not new.bn.running_mean.any()
    assert first.activation is not new.activation


def test_relu_can_be_forced_as_in_the_paper() -> None:
    model = live(build(shufflenetv2_wd2))
    for choice, layers in (("original", ["conv", "bn"]), ("relu", ["conv", "bn", "activation"])):
        attached = attach_selective_kernels(model, activation=choice)  # type: ignore[arg-type]  # one of them
        for unit in selective(attached).values():
            assert [[name for name, _ in branch.named_children()] for branch in unit.branches] == [layers, layers]
    assert difference(attached, model) > 0.01


@pytest.mark.parametrize("extra", [1, 2])
@pytest.mark.parametrize("share", [0.5, 0.99])
def test_the_gate_starts_at_the_share_asked_for_and_learns(extra: int, share: float) -> None:
    torch.manual_seed(0)
    model = Net(nn.Conv2d(8, 8, 3, padding=1), *norm()).double()
    attached = attach_selective_kernels(
        model,
        branches=[ExtraBranch(dilation=1 + m) for m in range(1, 1 + extra)],
        first_branch_share=share,
        min_width=4,
    )
    [unit] = selective(attached).values()
    gate = unit.gate
    given = torch.randn(5, 8, 1, 1, dtype=torch.float64)
    shares = attention(gate(given))
    expected = torch.full((5, 8), share, dtype=torch.float64)
    torch.testing.assert_close(shares[:, 0], expected, rtol=0, atol=1e-6)  # the weights were made in float32
    assert shares.std(0).max() < 1e-12  # images do not differ in their attention yet, but for rounding at 1e-16
    optimizer = torch.optim.SGD(gate.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        (gate(given)[0] * given).sum().backward()
        optimizer.step()
    assert attention(gate(given))[:, 0].std(0).mean() > 1e-5  # now they do


def test_the_gate_has_the_papers_width() -> None:
    model = Net(nn.Conv2d(96, 96, 3, padding=1), channels=96)
    for options, width in (({}, 32), ({"reduction": 2}, 48), ({"reduction": 8, "min_width": 4}, 12)):
        [unit] = selective(attach_selective_kernels(model, **options)).values()  # type: ignore[arg-type]  # all int
        assert unit.gate is not None
        assert unit.gate.fc1.out_channels == width


def test_where_is_a_pattern_or_a_predicate_and_spares_the_stem_by_default() -> None:
    model = build(mobilenetv2_wd4)
    assert "features.init_block.conv" not in selective(attach_selective_kernels(model))
    for where, count in ((r"init_block", 1), (r"stage5\.", 4), (lambda name, conv: conv.stride == (2, 2), 5)):
        sites = convolutions_to_replace(model, where)
        assert len(sites) == count
        assert list(selective(attach_selective_kernels(model, where))) == [site.convolution for site in sites]


def test_a_network_takes_selective_kernels_in_several_steps() -> None:
    model = live(build(mobilenetv2_wd4))
    early = attach_selective_kernels(model, r"stage2\.", branches=[ExtraBranch(), ExtraBranch(dilation=3)])
    both = attach_selective_kernels(early, r"stage5\.")
    assert [len(unit.branches) for unit in selective(both).values()] == [3] * 2 + [2] * 4
    assert difference(both, model) < SAME_FUNCTION


def test_a_stem_of_another_class_is_the_stem() -> None:
    class OwnConv(nn.Conv2d):
        pass

    model = Net(nn.Conv2d(8, 8, 3))
    model.stem = OwnConv(3, 8, 3)
    assert [site.convolution for site in convolutions_to_replace(model)] == ["layers.0"]


class Optional(nn.Module):
    """Scales between convolution and batch normalisation, but only if asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        y: Tensor = self.bn(self.conv(x) if scale is None else self.conv(x) * scale)
        return y


def test_arguments_of_forward_have_their_defaults() -> None:
    assert [site.batch_norm for site in convolutions_to_replace(Optional(), "conv")] == ["bn"]


def test_new_weights_are_made_on_the_cpu_whatever_the_default_device() -> None:
    model = Net(nn.Conv2d(8, 8, 3, padding=1), *norm())
    expected = attach_selective_kernels(model).state_dict()
    with torch.device("meta"):
        state = attach_selective_kernels(model).state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


class Undecided(nn.Module):
    """Calls its stem and its blocks by a rule that torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList([Block(functional.relu), nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), *norm())])

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for block in self.blocks:
            y = block(y) if y.sum() != 0 else y
        return y


def test_parts_of_a_forward_that_cannot_be_followed_are_followed_by_themselves() -> None:
    model = live(Undecided())
    sites = convolutions_to_replace(model)
    assert [site.batch_norm for site in sites] == ["blocks.0.bn1", "blocks.0.bn2", "blocks.1.1"]
    assert difference(attach_selective_kernels(model), model) < SAME_FUNCTION
    with pytest.raises(
        UsageError, match=r"of stem: torch\.fx cannot trace the forward of the model around it: TraceError"
    ):
        convolutions_to_replace(model, "stem")

"""From shapes to a network: every card of the zoo comes back from the shapes of its own weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from skdeploy.checkpoints.infer import Shapes, differences, infer, is_adaptable
from skdeploy.checkpoints.layouts import developer0hye, ppplang, pytorch_insight, pytorchcv, simclr, timm
from skdeploy.checkpoints.rules import Implied
from skdeploy.core.architecture import GateSpec, SelectiveKernelSpec, SKShuffleNetSpec, TrunkSpec
from skdeploy.core.errors import WeightsError
from skdeploy.core.spec import ModelSpec
from skdeploy.zoo.build import build_meta
from skdeploy.zoo.cards import list_cards
from skdeploy.zoo.fold import count_parameters

CARDS = {spec.name: spec for spec, _ in list_cards()}
INFERRED = [name for name, spec in CARDS.items() if isinstance(spec.network, TrunkSpec)]
PATH = Path("weights.pth")
DEEP_STEM = ["conv1.6.weight"]  # the key that tells timm's d variants


def shapes_of(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    state = build_meta(spec).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


@cache
def shapes(name: str) -> dict[str, tuple[int, ...]]:
    return shapes_of(CARDS[name])


def implied_by(spec: ModelSpec) -> Implied:
    """What a layout would have to imply for this card: all that shapes do not show."""
    network = spec.network
    assert isinstance(network, TrunkSpec)  # ShuffleNets have no stem and stages in their card
    kernels = network.selective_kernel
    family = "linear_sknet" if network.family == "linear_sknet" else "resnet"
    return Implied(
        family=family,
        dilations=tuple(branch.dilation for branch in kernels.branches),
        strides=tuple(stage.stride for stage in network.stages),
        stem_stride=network.stem.stride,
        max_pool=network.stem.max_pool,
        ceil_mode=network.stem.ceil_mode,
        shortcut=getattr(network, "shortcut", "conv"),
        split_input=kernels.split_input,
    )


@pytest.mark.parametrize("name", INFERRED)
def test_every_card_comes_back_from_the_shapes_of_its_weights(name: str) -> None:
    spec = CARDS[name]
    network, channels = infer(shapes(name), implied_by(spec), PATH)
    assert differences(spec.architecture, network) == []
    assert channels == spec.input.channels
    assert shapes_of(spec.model_copy(update={"network": network})) == shapes(name)


def test_cards_that_are_not_inferred_are_those_without_a_known_layout() -> None:
    others = set(CARDS) - set(INFERRED)
    assert all(isinstance(CARDS[name].network, SKShuffleNetSpec) for name in others)


@pytest.mark.parametrize(
    ("name", "implied"),
    [
        ("sknet26", pytorchcv.LAYOUT.implied),
        ("sknet50", pytorchcv.LAYOUT.implied),
        ("sknet101", pytorchcv.LAYOUT.implied),
        ("sknet152", pytorchcv.LAYOUT.implied),
        ("timm/skresnet18", timm.LAYOUT.implied),
        ("timm/skresnet34", timm.LAYOUT.implied),
        ("timm/skresnet50", timm.LAYOUT.implied),
        ("timm/skresnet50d", timm.LAYOUT.of(DEEP_STEM).implied),
        ("timm/skresnext50_32x4d", timm.LAYOUT.implied),
        ("sk_resnet50", pytorch_insight.LAYOUT.implied),
        ("sk_resnet101", pytorch_insight.LAYOUT.implied),
        ("simclrv2-r50_1x_sk1", simclr.LAYOUT.implied),
        ("sknet-ppplang", ppplang.LAYOUT.implied),
    ],
)
def test_a_layout_implies_what_its_cards_say(name: str, implied: Implied) -> None:
    network, _ = infer(shapes(name), implied, PATH)
    assert differences(CARDS[name].architecture, network) == []
    # And of all cards it is this one, and those that are the same network.
    same = {other for other in INFERRED if not differences(CARDS[other].architecture, network)}
    assert same == ({"sknet50", "timm/skresnext50_32x4d"} if name in ("sknet50", "timm/skresnext50_32x4d") else {name})


def with_select_biases(network: Shapes) -> dict[str, tuple[int, ...]]:
    biases = {key.replace("weight", "bias"): shape[:1] for key, shape in network.items() if ".gate.fc2.weight" in key}
    return {**network, **biases}


def test_biases_of_the_select_are_inferred_and_counted() -> None:
    """SKNet-50 in developer0hye's and syt2's manner has 27,494,888 parameters."""
    spec = CARDS["sknet50"]
    network, _ = infer(with_select_biases(shapes("sknet50")), developer0hye.LAYOUT.implied, PATH)
    assert differences(spec.architecture, network) == [("selective_kernel.gate.select_bias", False, True)]
    assert is_adaptable("selective_kernel.gate.select_bias")
    assert count_parameters(build_meta(spec)) == 27_479_784
    assert count_parameters(build_meta(spec.model_copy(update={"network": network}))) == 27_494_888


def test_a_narrow_gate_of_one_stage_is_inferred() -> None:
    """The official sknet101.caffemodel has width 16 where L = 32 should have held."""
    narrow = dict(shapes("sknet101"))
    for key, shape in narrow.items():
        if key.startswith("stages.1.") and ".gate." in key:
            narrow[key] = tuple(16 if size == 32 else size for size in shape)
    network, _ = infer(narrow, Implied(family="sknet"), PATH)
    assert differences(CARDS["sknet101"].architecture, network) == [("stages.1.gate_width", 32, 16)]
    assert is_adaptable("stages.1.gate_width")


@pytest.mark.parametrize(
    ("key", "adaptable"),
    [
        ("stem.ceil_mode", True),
        ("selective_kernel.gate.norm", True),
        ("stem.kernel", False),
        ("stages.0.units", False),
        ("classes", True),
        ("selective_kernel.branches.1.dilation", False),
        ("selective_kernel.fuse", False),
    ],
)
def test_what_makes_another_network_is_not_adapted(key: str, adaptable: bool) -> None:
    assert is_adaptable(key) is adaptable


def test_differences_are_those_of_the_network_not_of_its_writing() -> None:
    network = CARDS["sknet50"].network
    assert isinstance(network, TrunkSpec)  # as above
    stages = tuple(
        stage.model_copy(update={"gate_width": network.selective_kernel.gate_width(stage.middle_channels)})
        for stage in network.stages
    )
    written_out = network.model_copy(
        update={
            "stages": stages,
            "selective_kernel": network.selective_kernel.model_copy(update={"reduction": 1, "min_width": 1}),
        }
    )
    assert written_out.normal_form() == network.normal_form()
    assert differences(CARDS["sknet50"].architecture, CARDS["timm/skresnext50_32x4d"].architecture) == []


def test_differences_come_in_the_order_of_the_card_with_the_family_first() -> None:
    """Notes are recorded, and a set's order is another in each process."""
    found = differences(CARDS["sknet50"].architecture, CARDS["timm/skresnet18"].architecture)
    keys = [key for key, _, _ in found]
    assert keys[0] == "family"
    parts = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    assert parts == ["family", "selective_kernel", "stages", "block", "shortcut"]


def test_a_gate_that_is_not_there_has_no_properties() -> None:
    plain = CARDS["sknet50-m2-sum"].architecture
    assert isinstance(plain, TrunkSpec)  # as above
    kernels = SelectiveKernelSpec(**{**dict(plain.selective_kernel), "gate": GateSpec(select_bias=True)})
    assert differences(plain, plain.model_copy(update={"selective_kernel": kernels})) == []


# ----- shapes that make no network


def test_the_first_missing_tensor_is_named() -> None:
    cut = {key: shape for key, shape in shapes("sknet50").items() if key != "classifier.weight"}
    with pytest.raises(WeightsError) as error:
        infer(cut, Implied(family="sknet"), PATH)
    assert "weights.pth is not a whole network: classifier.weight is missing" in error.value.message


@pytest.mark.parametrize("branch", [(128, 4, 2, 2), (128, 4, 17, 17), (128, 256, 3, 3)], ids=["even", "huge", "wide"])
def test_a_branch_that_no_network_has_is_refused(branch: tuple[int, ...]) -> None:
    odd = {**shapes("sknet50"), "stages.0.0.sk.branches.1.conv.weight": branch}
    with pytest.raises(WeightsError, match=r"the shapes in weights\.pth do not make a network"):
        infer(odd, Implied(family="sknet"), PATH)


def test_more_branches_than_the_layout_knows_dilations_of_are_refused() -> None:
    more = dict(shapes("sknet50-m3"))
    for key, shape in shapes("sknet50-m3").items():
        if ".branches.2." in key:
            more[key.replace(".branches.2.", ".branches.3.")] = shape
    with pytest.raises(WeightsError, match="has 4 branches, but this layout defines dilations for at most 3"):
        infer(more, Implied(family="sknet"), PATH)

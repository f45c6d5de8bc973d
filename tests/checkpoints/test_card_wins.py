"""A card decides what weights do not show; shapes are compared, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from skdeploy.checkpoints.importing import Imported, import_checkpoint, import_without_card
from skdeploy.core.architecture import NetworkSpec, TrunkSpec
from skdeploy.core.errors import WeightsError
from skdeploy.core.spec import ModelSpec
from skdeploy.zoo.assumed import assumptions_of
from skdeploy.zoo.build import build
from tests.checkpoints.cifar_network import CifarNetwork, trained
from tests.checkpoints.files import written

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 4 - 2


def computed(imported: Imported) -> torch.Tensor:
    network = build(imported.spec)
    network.load_state_dict(imported.state, strict=False)
    logits: torch.Tensor = network.eval()(IMAGES).detach()
    return logits


def distance(imported: Imported, network: CifarNetwork) -> float:
    expected = network(IMAGES)
    return float((computed(imported) - expected).abs().max() / expected.abs().max())


def card_of(
    network: NetworkSpec, base: ModelSpec, strides: tuple[int, int], dilations: tuple[int, ...], stem: int
) -> ModelSpec:
    """The card that a person writes who knows the code."""
    assert isinstance(network, TrunkSpec)  # ShuffleNets have no stem and stages in their card
    stages = [s.model_copy(update={"stride": n}) for s, n in zip(network.stages, strides, strict=True)]
    branches = [
        b.model_copy(update={"dilation": d}) for b, d in zip(network.selective_kernel.branches, dilations, strict=True)
    ]
    changed = {
        "stem": network.stem.model_copy(update={"stride": stem, "max_pool": False}),
        "stages": tuple(stages),
        "selective_kernel": network.selective_kernel.model_copy(update={"branches": tuple(branches)}),
    }
    return base.model_copy(update={"network": network.model_copy(update=changed)})


@pytest.mark.parametrize(
    ("stem", "strides", "dilations"),
    [(1, (1, 2), (1, 2)), (1, (2, 2), (1, 3)), (2, (1, 1), (2, 2)), (1, (1, 4), (1, 1))],
)
def test_with_the_right_card_it_is_the_authors_network(
    stem: int, strides: tuple[int, int], dilations: tuple[int, ...], tmp_path: Path
) -> None:
    network = trained(CifarNetwork(stem, strides, dilations))
    path = written(tmp_path, save(network.state_dict()))
    guessed = import_without_card(path)[0]
    assert distance(guessed, network) > 0.05  # another network: and here is what was taken for granted
    assert "stride 2 stem and 3x3 max pool" in [assumption.text for assumption in assumptions_of(guessed.spec)]

    card = card_of(guessed.spec.architecture, guessed.spec, strides, dilations, stem)
    imported = import_checkpoint(path, card)
    assert imported.spec.network == card.network
    # float32 rounds at 6e-8, and some twenty layers of other sums grow that to less than 1e-5
    assert distance(imported, network) < 1e-5
    assert "the card differs from what the developer0hye layout usually has" in imported.notes[-1]
    assert "stem.max_pool is False, usually True" in imported.notes[-1]
    assert "max pool" not in " ".join(assumption.text for assumption in assumptions_of(imported.spec))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"channels": 16}, "stem.channels: the card says 16, the weights 8"),
        ({"kernel": 7}, "stem.kernel: the card says 7, the weights 3"),
    ],
)
def test_what_a_tensor_contradicts_is_refused_with_that_alone(
    changed: dict[str, int], words: str, tmp_path: Path
) -> None:
    path = written(tmp_path, save(trained().state_dict()))
    guessed = import_without_card(path)[0].spec
    card = card_of(guessed.architecture, guessed, (1, 2), (1, 2), 1)
    stem = card.architecture.stem.model_copy(update=changed)  # type: ignore[union-attr]  # a trunk
    wrong = card.model_copy(update={"network": card.network.model_copy(update={"stem": stem})})
    with pytest.raises(WeightsError) as error:
        import_checkpoint(path, wrong)
    assert words in error.value.message
    assert "stride" not in error.value.message
    assert "pool" not in error.value.message


def test_caffes_pool_is_assumed_only_of_a_card_that_leaves_it_open(tmp_path: Path) -> None:
    from tests.checkpoints import caffe_reference as reference
    from tests.checkpoints.caffe_tiny import LAYERS, card

    path = tmp_path / "net.caffemodel"
    path.write_bytes(reference.caffemodel(LAYERS, reference.trained(LAYERS, 3, 5)))
    open_card = card()
    assert isinstance(open_card.network, TrunkSpec)  # as above
    stem = open_card.network.stem.model_dump()
    left_open = {key: value for key, value in stem.items() if key != "ceil_mode"}
    for given, expected in ((left_open, True), (left_open | {"ceil_mode": False}, False)):
        said = type(open_card.network.stem)(**given)
        spec = open_card.model_copy(update={"network": open_card.network.model_copy(update={"stem": said})})
        imported = import_checkpoint(path, spec)
        assert isinstance(imported.spec.network, TrunkSpec)  # as above
        assert imported.spec.network.stem.ceil_mode is expected
        texts = [a.text for a in assumptions_of(imported.spec) if a.about == "architecture"]
        assert texts == (["max pool rounded up"] if expected else [])

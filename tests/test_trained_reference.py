"""The trained reference that comes with the project is as good as its card says, in every precision that runs here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from skdeploy import export
from skdeploy.backends import onnxruntime
from skdeploy.backends.logits import run_images
from skdeploy.checkpoints.importing import import_checkpoint
from skdeploy.checkpoints.load import find_weights
from skdeploy.core.packaged import packaged
from skdeploy.core.spec import ModelSpec
from skdeploy.images.dataset import open_dataset
from skdeploy.zoo.cards import load_card

MIN_ACCURACY = 92.5  # what the project asks of a reference, on 10,000 images; see the cards for what was measured


@pytest.fixture(scope="module", params=["sknet-fashion", "skresnet-digits"])
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def bundle(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(name) / "bundle"
    export(name, precision="fp16", output=folder, exporter="torchscript", target="onnx", progress=False)
    return folder


@pytest.fixture(scope="module")
def spec(name: str) -> ModelSpec:
    return load_card(name)[0]


def images(spec: ModelSpec) -> Path:
    assert spec.parity_images is not None
    return packaged("calibration") / spec.parity_images


def accuracy(graph: Path, spec: ModelSpec) -> tuple[float, int]:
    """In percent, and on how many images."""
    dataset = open_dataset(images(spec))
    assert dataset.labels is not None
    with onnxruntime.open_session(graph) as session:
        logits = run_images(session, dataset.load(spec), spec, batch=100)["logits"]
    return 100 * float(np.mean(logits.argmax(1) == dataset.labels)), len(dataset)


@pytest.mark.parametrize("graph", ["model.onnx", "model.fp16.onnx"])
def test_accuracy_on_held_out_images_is_that_of_the_card(bundle: Path, spec: ModelSpec, graph: str) -> None:
    measured, count = accuracy(bundle / graph, spec)
    expected = spec.reference.top1_accuracy
    assert expected is not None
    assert expected >= MIN_ACCURACY
    # Two standard errors of the images that are committed: 1.0 point of 2,000 of Fashion-MNIST, 1.6 of 1,000 digits.
    assert abs(measured - expected) < 2 * (expected * (100 - expected) / count) ** 0.5


def test_images_and_labels_out_of_step_are_noticed(bundle: Path, spec: ModelSpec) -> None:
    """The check above can fail."""
    dataset = open_dataset(images(spec), 200)
    assert dataset.labels is not None
    with onnxruntime.open_session(bundle / "model.onnx") as session:
        logits = run_images(session, dataset.load(spec), spec, batch=100)["logits"]
    assert np.mean(logits.argmax(1) == np.roll(dataset.labels, 1)) < 0.5


def test_the_card_is_a_small_network_with_its_own_weights(name: str, spec: ModelSpec) -> None:
    record, path = find_weights(*load_card(name), None, 0)
    assert path is not None
    assert path.stat().st_size < 4e6
    state = import_checkpoint(path, spec).state
    assert record.sha256 == spec.weights.sha256 if spec.weights else False
    assert sum(tensor.numel() for tensor in state.values()) < 1e6
    assert spec.training["test_accuracy"] == spec.reference.top1_accuracy


def test_the_second_reference_is_imported_as_a_checkpoint_of_timms_is() -> None:
    spec, card = load_card("skresnet-digits")
    _, path = find_weights(spec, card, None, 0)
    assert path is not None
    assert import_checkpoint(path, spec).layout == "timm"

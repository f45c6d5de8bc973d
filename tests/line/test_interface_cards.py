"""Cards of networks that come as an ONNX file or as a module: they are used, and refused if they contradict the network."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from torch import nn

from skdeploy.accuracy.evaluate import EvaluationOptions, evaluate
from skdeploy.core.errors import CardError, UsageError, WeightsError
from skdeploy.images.dataset import normalise
from skdeploy.line.export import export, run_line
from skdeploy.line.init_card import init_card
from skdeploy.line.options import ExportOptions
from skdeploy.line.sources import find_source
from skdeploy.zoo.cards import load_interface_card, read_card
from tests.graphs import (
    foreign,
)

MEAN, STD = (0.25, 0.5, 0.75), (0.5, 0.25, 0.125)


class Small(nn.Module):
    """Pools, then classifies: any channels and size that it is built for, and no convolution."""

    def __init__(self, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.head = nn.Linear(channels, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.mean((2, 3)))  # type: ignore[no-any-return]  # torch's call is untyped


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return foreign.export(Small(), tmp_path_factory.mktemp("net") / "net.onnx", shape=(3, 24, 20))


@pytest.fixture
def filled(graph: Path, tmp_path: Path) -> Path:
    """The card that init writes, with the author's preprocessing filled in."""
    return changed(init_card(str(graph), tmp_path / "net.toml")[0], preprocess={"mean": MEAN, "std": STD})


def changed(path: Path, **tables: dict[str, Any]) -> Path:
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    for table, values in tables.items():
        content[table] |= values
    path.write_text(tomli_w.dumps(content), encoding="utf-8")
    return path


def labelled(folder: Path) -> Path:
    rng = np.random.default_rng(1)
    path = folder / "labelled.npz"
    np.savez(path, images=rng.integers(0, 256, (40, 30, 30, 3), dtype=np.uint8), labels=rng.integers(0, 4, 40))
    return path


# ----- init


def test_a_new_card_says_what_the_graph_shows_and_is_still_assumed(graph: Path, tmp_path: Path) -> None:
    path, spec = init_card(str(graph), tmp_path / "net.toml")
    assert read_card(path) == spec
    assert (spec.input.shape, spec.network.classes) == ((3, 24, 20), 4)
    source = find_source(ExportOptions(str(graph), card=str(path)))
    # The graph shows its size, so only how an image is prepared is assumed.
    assert [a.source for a in source.assumptions] == ["ImageNet's defaults"]


def test_every_key_of_a_new_card_is_explained(graph: Path, tmp_path: Path) -> None:
    text = init_card(str(graph), tmp_path / "net.toml")[0].read_text(encoding="utf-8")
    for key in ("[network]", "classes", "[input]", "[preprocess]", "resize", "interpolation", "mean", "std"):
        assert any(line.startswith((key, f"# {key}:")) and "#" in line for line in text.splitlines()), key


@pytest.mark.parametrize("taken", ["file", "link"])
def test_a_new_card_replaces_nothing(taken: str, graph: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.toml"
    if taken == "file":
        path.write_text("mine", encoding="utf-8")
    else:
        path.symlink_to(tmp_path / "elsewhere.toml")
    with pytest.raises(UsageError, match="already exists"):
        init_card(str(graph), path)
    assert not (tmp_path / "elsewhere.toml").exists()
    assert taken == "link" or path.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("model", "output", "words"), [("sknet50", None, "skdeploy models"), ("graph", "card.txt", ".toml")]
)
def test_what_gets_no_card_is_told(model: str, output: str | None, words: str, graph: Path) -> None:
    with pytest.raises(UsageError) as error:
        init_card(str(graph) if model == "graph" else model, Path(output) if output else None)
    assert words in f"{error.value.message} {error.value.advice}"


def test_a_graph_of_more_classes_than_any_network_has_is_told(tmp_path: Path) -> None:
    path = foreign.export(Small(channels=1, classes=2**20 + 1), tmp_path / "wide.onnx", shape=(1, 8, 8))
    with pytest.raises(UsageError, match="1,048,577 classes"):
        find_source(ExportOptions(str(path)))


def test_a_graph_of_other_channels_takes_arrays_without_a_card(tmp_path: Path) -> None:
    path = foreign.export(Small(channels=18), tmp_path / "bands.onnx", "torchscript", 17, shape=(18, 8, 8))
    source = find_source(ExportOptions(model=str(path)))
    assert [str(each) for each in source.spec.inputs] == ["image: float32[18, 8, 8]"]
    assert "inputs: image: float32[18, 8, 8]" in "\n".join(source.notes)


# ----- a card is used


def test_the_pixels_are_those_of_the_card(graph: Path, filled: Path) -> None:
    source = find_source(ExportOptions(str(graph), card=str(filled)))
    pixels = np.full((1, 24, 20, 3), 255, np.uint8)
    expected = [(1 - mean) / std for mean, std in zip(MEAN, STD, strict=True)]
    # Two float32 roundings of numbers up to 3.
    assert normalise(pixels, source.spec.preprocess)[0, :, 0, 0] == pytest.approx(expected, abs=1e-6)


def test_corrected_values_are_no_longer_assumed(graph: Path, filled: Path) -> None:
    source = find_source(ExportOptions(str(graph), card=str(filled)))
    assert not any("mean" in a.text or "std" in a.text for a in source.assumptions)


def test_a_card_of_the_zoo_serves_the_graph_of_its_network(tmp_path: Path) -> None:
    path = foreign.export(Small(channels=1, classes=10), tmp_path / "gray.onnx", shape=(1, 28, 28))
    spec = find_source(ExportOptions(str(path), card="sknet-fashion")).spec
    assert (spec.network.family, spec.weights, spec.preprocess.mean) == ("onnx", None, (0.286,))


@pytest.mark.parametrize(
    ("table", "values", "words"),
    [
        ("network", {"classes": 5}, "network.classes: the card says 5, the network has 4"),
        ("network", {"family": "module"}, "family 'module'"),
        ("input", {"height": 25}, "input.height: the card says 25, the network has 24"),
        ("input", {"channels": 1}, "input.channels: the card says 1, the network has 3"),
    ],
)
def test_a_card_that_contradicts_the_graph_is_refused(
    table: str, values: dict[str, Any], words: str, graph: Path, filled: Path
) -> None:
    if "channels" in values:
        changed(filled, preprocess={"mean": [0.5], "std": [0.5]})
    changed(filled, **{table: values})
    with pytest.raises(CardError) as error:
        find_source(ExportOptions(str(graph), card=str(filled)))
    assert words in error.value.message


def test_a_card_beside_a_card_is_refused(filled: Path) -> None:
    with pytest.raises(UsageError, match="--card does not go with sknet50"):
        find_source(ExportOptions("sknet50", card=str(filled)))


# ----- nobody confirmed the preprocessing


def test_accuracy_is_judged_only_on_preprocessing_that_somebody_gave(graph: Path, tmp_path: Path) -> None:
    data = labelled(tmp_path)
    plain = ExportOptions(str(graph), target="onnx", images=data, output=tmp_path / "bundle", num_images=4)
    bundle = export(plain).bundle
    assert {a.about for a in bundle.manifest.assumptions} == {"preprocessing"}
    with pytest.raises(UsageError, match="accuracy needs confirmed preprocessing") as error:
        evaluate(bundle.folder, EvaluationOptions(data=data))
    assert error.value.exit_code == 2
    assert "skdeploy init" in (error.value.advice or "")
    with pytest.raises(UsageError, match="accuracy needs confirmed preprocessing"):
        evaluate(bundle.folder, EvaluationOptions(data=data, against=str(bundle.folder)))
    assert evaluate(bundle.folder, EvaluationOptions(data=data, assume_imagenet=True)).accuracies

    # Beside a network whose preprocessing somebody gave, the other's is assumed all the same.
    given = export(replace(plain, output=tmp_path / "given", assume_imagenet=True)).bundle.folder
    with pytest.raises(UsageError, match=f"Assumed for {bundle.folder}: "):
        evaluate(given, EvaluationOptions(data=data, against=str(bundle.folder)))
    assert evaluate(bundle.folder, EvaluationOptions(data=data, against=str(given), assume_imagenet=True)).accuracies
    with pytest.raises(UsageError, match="--assume-imagenet is not needed"):
        evaluate(given, EvaluationOptions(data=data, assume_imagenet=True))


def test_a_confirmed_export_is_judged_without_asking_again(graph: Path, tmp_path: Path) -> None:
    data = labelled(tmp_path)
    done = run_line(
        ExportOptions(
            str(graph),
            target="onnx",
            images=data,
            output=tmp_path / "bundle",
            num_images=4,
            assume_imagenet=True,
        )
    )
    manifest = done.bundle.manifest
    assert manifest.assumptions == ()
    assert any("the user confirmed ImageNet's preprocessing" in note for note in manifest.notes)
    assert evaluate(done.bundle.folder, EvaluationOptions(data=data)).accuracies


def test_a_confirmation_of_nothing_is_refused(graph: Path, filled: Path) -> None:
    content = tomllib.loads(filled.read_text(encoding="utf-8"))
    del content["assumed"]
    filled.write_text(tomli_w.dumps(content), encoding="utf-8")
    with pytest.raises(UsageError, match="--assume-imagenet is not needed"):
        find_source(ExportOptions(str(graph), card=str(filled), assume_imagenet=True))


# ----- modules

NETS = '''
import torch
from torch import nn

class Late(nn.Module):
    """The stem is declared last."""
    def __init__(self, channels):
        super().__init__()
        self.body = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)
        self.stem = nn.Conv2d(channels, 16, 3)
    def forward(self, images):
        return self.head(self.body(self.stem(images)).mean((2, 3)))

def late_colour():
    return Late(3)

def late_gray():
    return Late(1)

def space_to_depth():
    return nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

class Any_(nn.Module):
    def forward(self, images):
        return images.mean((1, 3))[:, :5]

def any_channels():
    return Any_()
'''


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "nets_of_cards.py").write_text(NETS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "nets_of_cards"
    sys.modules.pop("nets_of_cards", None)


@pytest.mark.parametrize(("factory", "channels"), [("late_colour", 3), ("late_gray", 1), ("space_to_depth", 3)])
def test_channels_are_those_that_the_module_runs_on(factory: str, channels: int, nets: str) -> None:
    spec = find_source(ExportOptions(f"{nets}:{factory}", image_size=(32, 32))).spec
    assert (spec.input.channels, spec.network.classes) == (channels, 5)


def test_a_card_decides_between_channels_that_both_run(nets: str, tmp_path: Path) -> None:
    model = f"{nets}:any_channels"
    source = find_source(ExportOptions(model, image_size=(32, 32)))
    assert source.spec.input.channels == 3
    assert any("3 channels and of 1" in note for note in source.notes)
    card, _ = init_card(model, tmp_path / "any.toml", (32, 32))
    changed(card, input={"channels": 1}, preprocess={"mean": [0.5], "std": [0.5]})
    assert find_source(ExportOptions(model, card=str(card))).spec.input.shape == (1, 32, 32)


def test_the_card_of_another_function_is_refused(nets: str, tmp_path: Path) -> None:
    card, _ = init_card(f"{nets}:late_colour", tmp_path / "late.toml", (32, 32))
    with pytest.raises(CardError, match=r"network\.factory"):
        find_source(ExportOptions(f"{nets}:space_to_depth", card=str(card)))


# ----- cards that are bad input


def spoiled(filled: Path, old: str, new: str) -> Path:
    text = filled.read_text(encoding="utf-8")
    assert old in text
    filled.write_text(text.replace(old, new, 1), encoding="utf-8")
    return filled


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.25,", "nan,"),
        ("0.25,", "inf,"),
        ("0.25,", "1e30,"),
        ("0.125", "1e-320"),
        ("0.125", "0.0"),
        ("0.9999\n", "nan\n"),
        ("classes = 4", "classes = 1000000000000"),
        ("height = 24", "height = 1000000"),
        ("classes = 4", "classes = 0x" + "f" * 5000),
        ("schema = 1", "schema = " + "9" * 5000),
        ("schema = 1", "x = " + "{a=" * 5000),
    ],
)
def test_numbers_without_bounds_are_refused_by_the_card(old: str, new: str, filled: Path) -> None:
    with pytest.raises(CardError) as error:
        load_interface_card(str(spoiled(filled, old, new)))
    assert error.value.exit_code == 2
    assert len(error.value.message) < 1000  # a number of thousands of digits is not printed


def test_a_network_of_terabytes_is_refused_before_any_of_it_is_allocated(tmp_path: Path) -> None:
    text = Path("models/sknet-fashion.toml").read_text(encoding="utf-8")
    first, _, rest = text.partition("[weights]")
    wide, count = re.subn(r"out_channels = \d+", "out_channels = 1048576", first)
    assert count
    card = tmp_path / "wide.toml"
    card.write_text(wide + rest[rest.index("\n[") :], encoding="utf-8")  # the next table
    with pytest.raises(CardError, match="parameters"):
        run_line(ExportOptions(str(card), target="onnx", output=tmp_path / "bundle"))


@pytest.mark.parametrize("kind", ["long", "circle"])
def test_weights_that_cannot_be_looked_for_are_told(kind: str, tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    name = "x" * 5000 if kind == "long" else "circle"
    text = Path("models/sknet-fashion.toml").read_text(encoding="utf-8")
    card = tmp_path / "card.toml"
    card.write_text(text.replace("weights/sknet-fashion.safetensors", name), encoding="utf-8")
    with pytest.raises(WeightsError, match="cannot look for the weights") as error:
        find_source(ExportOptions(str(card)))
    assert "weights.file" in (error.value.advice or "")

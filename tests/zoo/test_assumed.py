"""A card that skdeploy filled in says so, until a person corrects a value or takes it out of ``[assumed]``."""

from __future__ import annotations

from pathlib import Path

import pytest

from skdeploy.core.architecture import GraphSpec
from skdeploy.core.errors import UsageError
from skdeploy.core.spec import Assumed, AssumedArchitecture, ModelSpec
from skdeploy.line.options import ExportOptions
from skdeploy.zoo.assumed import architecture_of, assumptions_of, confirmed, preprocessing_of, require_preprocessing
from skdeploy.zoo.cards import load_card, read_card
from skdeploy.zoo.write_card import card_text


def filled_in(name: str = "sknet26") -> ModelSpec:
    """A card of the zoo, as if all of it that weights do not show had been filled in."""
    spec = load_card(name)[0]
    assumed = Assumed(
        architecture=architecture_of(spec.network, "the layout X"), preprocessing=preprocessing_of(spec, "a habit")
    )
    return spec.model_copy(update={"assumed": assumed})


def texts(spec: ModelSpec) -> list[str]:
    return [assumption.text for assumption in assumptions_of(spec)]


def test_cards_of_the_zoo_assume_nothing() -> None:
    assert assumptions_of(load_card("sknet50")[0]) == ()


def test_each_value_that_weights_do_not_show_is_said_once() -> None:
    assert texts(filled_in()) == [
        "stride 2 stem and 3x3 max pool",
        "stage strides 1, 2, 2, 2",
        "branch dilations 1, 2",
        "ReLU, batch norm eps 1e-5 and no softmax at the end",
        "224 x 224 input",
        "shorter side to 256 (bilinear) and centre crop, mean 0.485 0.456 0.406, std 0.229 0.224 0.225, RGB order",
    ]
    assert {(a.about, a.source) for a in assumptions_of(filled_in())} == {
        ("architecture", "the layout X"),
        ("preprocessing", "a habit"),
    }


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("timm/skresnet50d", "2x2 average pool in the shortcuts"),
        ("timm/skresnet18", "input channels shared out among the branches"),
        ("simclrv2-r50_1x_sk1", "2x2 average pool, zero-padded, in the shortcuts"),
        ("sknet-ppplang", "stride 1 stem and no max pool"),
    ],
)
def test_what_only_some_networks_have_is_said_of_them(card: str, words: str) -> None:
    assert words in texts(filled_in(card))
    assert words not in texts(filled_in())


def test_what_is_written_is_read_again_with_a_word_to_the_person(tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_text(card_text(filled_in()), encoding="utf-8")
    assert read_card(path) == filled_in()
    assert "weights do not show them" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "gone", "left"),
    [
        ("stride = 2\nmax_pool = true", "stride = 1\nmax_pool = false", "stem", "stage strides"),
        ("dilation = 2", "dilation = 3", "dilations", "stem"),
        ("height = 224", "height = 192", "input", "mean"),
        ("    0.485,", "    0.5,", "mean", "std"),
        ("stem_stride = 2\n", "", "stem", "3x3 max pool"),
    ],
)
def test_what_a_person_corrects_or_takes_out_is_not_assumed(
    old: str, new: str, gone: str, left: str, tmp_path: Path
) -> None:
    text = card_text(filled_in())
    assert old in text
    path = tmp_path / "card.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    said = " | ".join(texts(read_card(path)))
    assert gone not in said
    assert left in said


@pytest.mark.parametrize("size", [224, 448])
def test_a_size_that_is_given_is_not_assumed(size: int) -> None:
    given = ExportOptions(model="x", image_size=(size, size)).applied(filled_in())
    assert not any("input" in text.split() for text in texts(given))
    assert any("mean" in text for text in texts(given))


def test_a_family_whose_card_no_layout_makes_assumes_nothing() -> None:
    assert architecture_of(load_card("shufflenet_v2_1.0x-sk")[0].architecture, "x") is None
    spec = load_card("shufflenet_v2_1.0x-sk")[0]
    assumed = Assumed(architecture=AssumedArchitecture(source="x", stem_stride=2))
    assert assumptions_of(spec.model_copy(update={"assumed": assumed})) == ()


@pytest.mark.parametrize("key", ["mean", "std"])
def test_only_what_is_imagenets_is_confirmed_as_such(key: str) -> None:
    """Whoever assumed it, a layout or a person's half-edited card: --assume-imagenet is no word for other numbers."""
    spec = filled_in()
    assert {a.about for a in assumptions_of(confirmed(spec, True, "net"))} == {"architecture"}
    other = filled_in().preprocess.model_copy(update={key: (0.5, 0.5, 0.5)})
    changed = spec.model_copy(update={"preprocess": other})
    changed = changed.model_copy(update={"assumed": Assumed(preprocessing=preprocessing_of(changed, "a layout"))})
    for refuse in (lambda: confirmed(changed, True, "net"), lambda: require_preprocessing({"net": changed}, True)):
        with pytest.raises(UsageError, match=f"its assumed {key} 0.5 0.5 0.5 \\(from a layout\\) is not ImageNet's"):
            refuse()


@pytest.mark.parametrize(("mean", "channels", "offered"), [(None, 3, True), (0.0, 3, False), (0.5, 18, False)])
def test_the_advice_offers_imagenet_only_where_it_would_be_taken(
    mean: float | None, channels: int, offered: bool
) -> None:
    spec = filled_in()
    size = spec.input.model_copy(update={"channels": channels})
    prepared = spec.preprocess
    if mean is not None:
        prepared = prepared.model_copy(update={"mean": (mean,) * channels, "std": (1.0,) * channels})
    spec = spec.model_copy(update={"network": GraphSpec(classes=5), "input": size, "preprocess": prepared})
    spec = spec.model_copy(update={"assumed": Assumed(preprocessing=preprocessing_of(spec, "somebody"))})
    with pytest.raises(UsageError) as error:
        require_preprocessing({"net": spec})
    assert ("--assume-imagenet" in (error.value.advice or "")) is offered
    if not offered:
        with pytest.raises(UsageError, match="is not ImageNet's"):
            confirmed(spec, True, "net")


def test_what_a_person_has_corrected_needs_no_confirmation() -> None:
    spec = filled_in()
    corrected = spec.preprocess.model_copy(
        update={"mean": (0.1, 0.1, 0.1), "std": (0.2, 0.2, 0.2), "interpolation": "bicubic"}
    )
    size = spec.input.model_copy(update={"height": 192, "width": 192})
    with pytest.raises(UsageError, match="is not needed"):
        confirmed(spec.model_copy(update={"preprocess": corrected, "input": size}), True, "net")

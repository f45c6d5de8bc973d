"""A card that is written says what its spec says."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from skdeploy.core.spec import ModelSpec, Precision, WeightsSpec
from skdeploy.zoo.cards import list_cards, load_card, read_card
from skdeploy.zoo.write_card import card_text

CARDS = [spec for spec, _ in list_cards()]


def reread(spec: ModelSpec, folder: Path) -> ModelSpec:
    path = folder / "written.toml"
    path.write_text(card_text(spec), encoding="utf-8")
    return read_card(path)


@pytest.mark.parametrize("spec", CARDS, ids=lambda spec: spec.name)
def test_every_card_of_the_zoo_is_the_same_when_written_and_read_again(spec: ModelSpec, tmp_path: Path) -> None:
    assert reread(spec, tmp_path) == spec


def test_the_zoo_has_every_family() -> None:
    """So that the test above has met each kind of table."""
    assert {spec.network.family for spec in CARDS} == {"sknet", "resnet", "linear_sknet", "shufflenet_v2"}


def test_a_changed_number_would_be_seen(tmp_path: Path) -> None:
    spec, _ = load_card("sknet50")
    path = tmp_path / "written.toml"
    path.write_text(card_text(spec).replace("dilation = 2", "dilation = 3"), encoding="utf-8")
    assert read_card(path) != spec


def test_what_is_a_default_is_left_out() -> None:
    content = tomllib.loads(card_text(load_card("sknet50")[0]))
    assert "labels" not in content
    assert "ceil_mode" not in content["network"]["stem"]
    assert content["schema"] == 1
    assert content["network"]["family"] == "sknet"


@pytest.mark.parametrize(
    "text", ['a "quoted" \\ text', "two\nlines", "ünïcode", "# no comment", "[table]", "'''", '"""']
)
def test_any_text_comes_back_as_it_was(text: str, tmp_path: Path) -> None:
    spec = load_card("sknet26")[0].model_copy(
        update={"summary": text, "training": {text: text, "epochs": 3, "rate": 1e-05}, "labels": (text,) * 1000}
    )
    assert reread(spec, tmp_path) == spec


def test_every_number_comes_back_exactly(tmp_path: Path) -> None:
    spec = load_card("sknet26")[0]
    odd = spec.tolerance[Precision.FP32].model_copy(update={"max_rel_error": 0.1 + 0.2, "min_sqnr_db": -1e-17})
    spec = spec.model_copy(
        update={"tolerance": {Precision.INT8: odd}, "weights": WeightsSpec(file="a/b.safetensors", sha256="0" * 64)}
    )
    assert reread(spec, tmp_path) == spec

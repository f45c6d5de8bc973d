"""A network family and a checkpoint layout that are registered from outside the package: cards, descriptions, notes."""

from __future__ import annotations

from pathlib import Path

import pytest

from skdeploy.checkpoints.importing import import_checkpoint
from skdeploy.core.architecture import SPECS
from skdeploy.core.errors import CardError
from skdeploy.zoo.cards import read_card
from skdeploy.zoo.describe import describe
from tests.outside import toy_family

pytestmark = pytest.mark.usefixtures("outside")


@pytest.fixture
def card(tmp_path: Path) -> Path:
    return toy_family.write_card(tmp_path)


def test_its_card_is_read_and_described(card: Path) -> None:
    spec = read_card(card)
    assert isinstance(spec.network, toy_family.ToySpec)  # this is the claim: the family's own spec was read
    assert "neck 10" in describe(spec)["family"]
    card.write_text(card.read_text(encoding="utf-8").replace("neck", "nek"), encoding="utf-8")
    with pytest.raises(CardError, match="did you mean 'neck'"):
        read_card(card)


def test_a_family_that_nobody_registered_is_refused_with_those_there_are(card: Path) -> None:
    card.write_text(card.read_text(encoding="utf-8").replace('"toy"\nneck', '"toi"\nneck'), encoding="utf-8")
    with pytest.raises(CardError, match=r"must be one of .*'toy'.* \(given 'toi'\)"):
        read_card(card)
    assert "toi" not in SPECS


def test_its_checkpoint_is_recognised_by_its_keys(card: Path) -> None:
    weights, _ = toy_family.write_checkpoint(card)
    imported = import_checkpoint(weights, read_card(card))
    assert imported.layout == "toy"
    assert "toys are fragile" in imported.notes

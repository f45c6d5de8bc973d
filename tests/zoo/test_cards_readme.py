"""models/README.md describes the schema as it is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from skdeploy.errors import CardError
from skdeploy.spec import (
    BranchSpec,
    InputSpec,
    ModelSpec,
    NetworkSpec,
    Preprocess,
    Reference,
    SelectiveKernelSpec,
    Source,
    StageSpec,
    StemSpec,
    Tolerance,
    WeightsSpec,
)
from skdeploy.zoo.cards import read_card
from skdeploy.zoo.fold import count_macs, count_parameters
from skdeploy.zoo.sknet import SKNet

README = (Path(__file__).parents[2] / "models/README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```toml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
TABLES: list[type[BaseModel]] = [
    ModelSpec, NetworkSpec, StemSpec, StageSpec, SelectiveKernelSpec, BranchSpec, InputSpec, Preprocess, Source, Reference,
    WeightsSpec, Tolerance,
]  # fmt: skip


def keys(table: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in table.model_fields.items()]


def card(text: str, folder: Path) -> ModelSpec:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return read_card(path)


def test_there_is_an_example() -> None:
    assert BLOCKS


@pytest.mark.parametrize("block", BLOCKS)
def test_every_toml_block_is_a_valid_card_with_true_figures(block: str, tmp_path: Path) -> None:
    spec = card(block, tmp_path)
    model = SKNet(spec.network, spec.input.channels)
    assert count_parameters(model) == spec.reference.parameters
    assert count_macs(model, spec.input.shape) == spec.reference.macs


def test_a_block_with_a_wrong_key_would_be_seen(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="unknown key"):
        card(BLOCKS[0].replace("max_pool", "max_pol"), tmp_path)


@pytest.mark.parametrize("table", TABLES)
def test_every_key_is_described_in_the_prose(table: type[BaseModel]) -> None:
    prose = re.sub(r"^```toml\n.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    # a table's own name may stand in its heading: `[network.selective_kernel]`
    described = {part for name in re.findall(r"`\[?([a-z0-9_.]+)\]?`", prose) for part in name.split(".")}
    assert set(keys(table)) <= described


@pytest.mark.parametrize("table", TABLES)
def test_every_key_is_in_the_first_example(table: type[BaseModel]) -> None:
    used: set[str] = set()

    def collect(value: object) -> None:
        if isinstance(value, dict):
            used.update(value)
            for inner in value.values():
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)

    collect(tomllib.loads(BLOCKS[0]))
    assert set(keys(table)) <= used

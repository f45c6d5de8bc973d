"""models/README.md describes the schema as it is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from skdeploy.core.architecture import (
    BranchSpec,
    GateSpec,
    GraphSpec,
    LinearSKNetSpec,
    ModuleSpec,
    SelectiveKernelSpec,
    ShuffleStageSpec,
    SKNetSpec,
    SKResNetSpec,
    SKShuffleNetSpec,
    StageSpec,
    StemSpec,
)
from skdeploy.core.errors import CardError
from skdeploy.core.spec import InputSpec, ModelSpec, Preprocess, Reference, Source, Tolerance, WeightsSpec
from skdeploy.zoo.build import build_meta
from skdeploy.zoo.cards import read_card
from skdeploy.zoo.fold import count_macs, count_parameters

README = (Path(__file__).parents[2] / "models/README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```toml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def family_of(block: str) -> str:
    return str(tomllib.loads(block)["network"]["family"])


TABLES: list[type[BaseModel]] = [
    ModelSpec, SKNetSpec, StemSpec, StageSpec, SelectiveKernelSpec, BranchSpec, GateSpec, InputSpec, Preprocess, Source,
    Reference, WeightsSpec, Tolerance,
]  # fmt: skip
# What a classifier of images with one output has not.
OTHER_TASKS = {
    "class_output",
    "inputs",
    "sizes",
    "outputs",
    "min_psnr_db",
    "min_ssim",
    "min_miou",
    "max_pair_error",
    "min_equal",
}
FAMILIES: dict[str, list[type[BaseModel]]] = {
    "sknet": [SKNetSpec],
    "resnet": [SKResNetSpec],
    "shufflenet_v2": [SKShuffleNetSpec, ShuffleStageSpec],
    "linear_sknet": [LinearSKNetSpec],
    "onnx": [GraphSpec],
}


def keys(table: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in table.model_fields.items()]


def card(text: str, folder: Path) -> ModelSpec:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return read_card(path)


def test_there_is_an_example_of_each_family() -> None:
    assert list(dict.fromkeys(family_of(block) for block in BLOCKS)) == list(FAMILIES)


def test_the_cards_of_onnx_files_are_valid(tmp_path: Path) -> None:
    of_images, of_arrays = (block for block in BLOCKS if family_of(block) == "onnx")
    assert card(of_images, tmp_path).network == GraphSpec(classes=2, total_stride=32)
    assert [given.name for given in card(of_arrays, tmp_path).inputs] == ["first", "second"]


@pytest.mark.parametrize("block", [block for block in BLOCKS if family_of(block) != "onnx"])
def test_every_other_toml_block_is_a_valid_card_with_true_figures(block: str, tmp_path: Path) -> None:
    spec = card(block, tmp_path)
    model = build_meta(spec)
    assert count_parameters(model) == spec.reference.parameters
    assert count_macs(model, spec.input.shape) == spec.reference.macs


def test_a_block_with_a_wrong_key_would_be_seen(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="unknown key"):
        card(BLOCKS[0].replace("max_pool", "max_pol"), tmp_path)


def described(readme: str) -> set[str]:
    prose = re.sub(r"^```toml\n.*?^```$", "", readme, flags=re.MULTILINE | re.DOTALL)
    # a table's own name may stand in its heading: `[network.selective_kernel]`
    return {part for name in re.findall(r"`\[{0,2}([a-zA-Z0-9_.]+)\]{0,2}`", prose) for part in name.split(".")}


@pytest.mark.parametrize("table", [*TABLES, ModuleSpec, *(table for tables in FAMILIES.values() for table in tables)])
def test_every_key_is_described_in_the_prose(table: type[BaseModel]) -> None:
    assert set(keys(table)) <= described(README)


def test_a_key_that_only_an_example_has_is_not_described() -> None:
    assert "select_bias" not in described(README.replace("`select_bias`", ""))


@pytest.mark.parametrize("family", [*FAMILIES, "module"])
def test_every_family_is_described_in_the_prose(family: str) -> None:
    assert f'| `"{family}"` |' in README


def used(block: str) -> set[str]:
    """The keys of a TOML text, those of its nested tables too."""
    found: set[str] = set()

    def collect(value: object) -> None:
        if isinstance(value, dict):
            found.update(value)
            for inner in value.values():
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)

    collect(tomllib.loads(block))
    return found


@pytest.mark.parametrize("table", TABLES)
def test_every_key_of_a_trunk_is_in_the_first_example(table: type[BaseModel]) -> None:
    assert set(keys(table)) - OTHER_TASKS <= used(BLOCKS[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_a_family_is_in_its_example(family: str) -> None:
    block = BLOCKS[list(FAMILIES).index(family)]
    assert {key for table in FAMILIES[family] for key in keys(table)} <= used(block)

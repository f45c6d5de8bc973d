"""Cards: what is found, and what a broken one says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from skdeploy.core.errors import CardError
from skdeploy.core.packaged import packaged
from skdeploy.core.toml_reasons import LARGEST
from skdeploy.zoo.cards import list_cards, load_card, read_card
from tests.refused import refused

NAMES = [
    "shufflenet_v2_0.5x-sk", "shufflenet_v2_1.0x-sk", "simclrv2-r50_1x_sk1", "sk_resnet101", "sk_resnet50",
    "sknet-fashion", "sknet-ppplang", "sknet101", "sknet152", "sknet26", "sknet29-cifar",
    "sknet50", "sknet50-5x5", "sknet50-7x7", "sknet50-k3", "sknet50-k7", "sknet50-m1", "sknet50-m2-sum", "sknet50-m3",
    "sknet50-m3-sum", "skresnet-digits",
    "timm/skresnet18", "timm/skresnet34", "timm/skresnet50", "timm/skresnet50d", "timm/skresnext50_32x4d",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder: only packaged cards are found by name."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edited(folder: Path, old: str, new: str) -> Path:
    """A copy of SKNet-50's card with one text replaced by another."""
    text = (packaged("models") / "sknet50.toml").read_text(encoding="utf-8")
    assert old in text
    path = folder / "edited.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_card_loads_by_name_from_any_folder(folder: Path, name: str) -> None:
    spec, path = load_card(name)
    assert spec.name == name
    assert path == packaged("models") / f"{name}.toml"
    assert set(spec.tolerance) == {
        "fp32",
        "fp16",
        "bf16",
        "weight-only-int8",
        "int8",
    }  # an export notes what is missing


def test_all_cards_are_listed_by_name(folder: Path) -> None:
    assert [spec.name for spec, _ in list_cards()] == NAMES


def test_a_card_loads_by_path(folder: Path) -> None:
    spec, path = load_card(str(edited(folder, 'name = "sknet50"', 'name = "mine"')))
    assert (spec.name, path) == ("mine", folder / "edited.toml")


def test_a_card_in_a_subfolder_of_models_has_the_folder_in_its_name(folder: Path) -> None:
    (folder / "models/own").mkdir(parents=True)
    shutil.copy(edited(folder, 'name = "sknet50"', 'name = "own/sknet50"'), folder / "models/own/sknet50.toml")
    assert load_card("own/sknet50")[0].name == "own/sknet50"
    assert load_card("sknet50")[0].name == "sknet50"
    assert [spec.name for spec, _ in list_cards()] == sorted([*NAMES, "own/sknet50"])


def test_a_card_in_models_hides_the_packaged_one_of_its_name(folder: Path) -> None:
    (folder / "models").mkdir()
    shutil.copy(edited(folder, "classes = 1000", "classes = 7"), folder / "models/sknet50.toml")
    assert load_card("sknet50")[0].network.classes == 7
    listed = {spec.name: spec.network.classes for spec, _ in list_cards()}
    assert list(listed) == NAMES
    assert [name for name, classes in listed.items() if classes == 7] == ["sknet50"]
    assert load_card("sknet101")[0].network.classes == 1000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_pool = true", "max_pol = true", "network.stem.max_pol: unknown key, did you mean 'max_pool'?"),
        ("reduction = 16", "reductoin = 16", "reductoin: unknown key, did you mean 'reduction'?"),
        ("dilation = 2", "dilatation = 2", "dilatation: unknown key, did you mean 'dilation'?"),
        ("summary =", "sumary =", "sumary: unknown key, did you mean 'summary'?"),
        ("min_cosine", "min_kosine", "tolerance.fp32.min_kosine: unknown key, did you mean 'min_cosine'?"),
        ("fuse =", "fuze =", "network.selective_kernel.fuze: unknown key, did you mean 'fuse'?"),
        ("units = 4", "unit = 4", "network.stages.1.unit: unknown key, did you mean 'units'?"),
        ("[input]", "[inputs]", "inputs: is one table; write [[inputs]], or [input] for an image"),
        ("classes = 1000", 'classes = "many"', "network.classes: Input should be a valid integer (given 'many')"),
        ("classes = 1000", "classes = 0", "network.classes: Input should be greater than or equal to 1 (given 0)"),
        ("classes = 1000", "", "network.classes: missing"),
        ('family = "sknet"', "", "network.family: missing"),
        (
            'family = "sknet"',
            'family = "sknett"',
            "one of 'sknet', 'resnet', 'linear_sknet', 'shufflenet_v2', 'onnx', 'module' (given 'sknett')",
        ),
        ('family = "sknet"', 'family = "shufflenet_v2"', "network.head_channels: missing"),
        ("stride = 1 }", "stride = 1, gate_width = 0 }", "stages.0.gate_width: Input should be greater than"),
        ("kernel = 3, dilation = 2", "kernel = 4, dilation = 2", "kernel 4 is even"),
        ("mean = [0.485, 0.456, 0.406]", "mean = [0.5]", "preprocess.mean has 1 values, but the input has 3 channels"),
        ("resize = 256", "resize = 32", "preprocess.resize 32 is smaller than the input"),
        ('fuse = "attention"', 'fuse = "max"', "(given 'max')"),
        ('name = "sknet50"', 'name = "../sknet50"', "(given '../sknet50')"),
        ("schema = 1", "schema = 2", "schema: Input should be 1 (given 2)"),
        ("[tolerance.fp32]", "[tolerance.fp8]", "(given 'fp8')"),
        ("schema = 1", 'schema = 1\nlabels = ["cat"]', "1 labels, but 1000 classes"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_was_meant_or_given(
    folder: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(CardError) as raised:
        read_card(edited(folder, old, new))
    assert message in raised.value.message
    assert "models/README.md" in raised.value.advice


@pytest.mark.parametrize("keys", ['family = "onnx"', 'family = "module"\nfactory = "os:getcwd"'])
def test_a_card_alone_is_no_network_of_a_file_or_module(folder: Path, keys: str) -> None:
    text = edited(folder, 'family = "sknet"', keys).read_text(encoding="utf-8")
    before, rest = text.split("stem = {")
    path = folder / "cardless.toml"
    path.write_text(before + rest[rest.index("[input]") :], encoding="utf-8")
    with pytest.raises(CardError, match="the network itself is in your own file or module"):
        load_card(str(path))


def test_every_mistake_in_a_card_is_reported_at_once(folder: Path) -> None:
    path = edited(folder, "classes = 1000", 'classes = "many"')
    path.write_text(path.read_text(encoding="utf-8").replace("max_pool", "max_pol"), encoding="utf-8")
    with pytest.raises(CardError) as raised:
        read_card(path)
    assert "network.classes" in raised.value.message
    assert "network.stem.max_pol" in raised.value.message


@pytest.mark.parametrize(
    ("name", "advice"), [("sknet5", "sknet50"), ("SKNET-FASION", "sknet-fashion"), ("qqqqqqqq", "skdeploy models")]
)
def test_an_unknown_model_suggests_the_nearest_or_else_the_list(folder: Path, name: str, advice: str) -> None:
    with refused(CardError, "no model named", advice):
        load_card(name)


@pytest.mark.parametrize("name", ["../edited", "weights/../../edited", "..", ""])
def test_a_name_does_not_leave_the_models_folder(folder: Path, name: str) -> None:
    edited(folder, "classes = 1000", "classes = 7")
    (folder / "models/weights").mkdir(parents=True)
    with pytest.raises(CardError, match="no model named"):
        load_card(name)
    with pytest.raises(CardError, match="no model named"):
        load_card(str(folder / "edited"))  # a path has its suffix


def test_a_path_to_nothing_is_refused(folder: Path) -> None:
    with pytest.raises(CardError, match=r"no card at absent\.toml"):
        load_card("absent.toml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"schema = ", "is not valid TOML"),
        (b"\xff\xfe not text", "is not UTF-8 text"),
        (b"#" * (LARGEST + 1), f"at most {LARGEST:,} are read"),
        (b"", "schema: missing"),
        (b"x = " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (b"a" + b".a" * 5000 + b" = 1", "a: unknown key"),
        (b"k" * 5000 + b" = 1", "kkk...: unknown key"),
        (b"n = " + b"9" * 5000, "5000 digits"),
        (b'n = [{weights = "a\\u0000b"}]', r"control character in 'a\x00b'"),
        (b'"\\u001b[31m" = 1', r"control character in '\x1b[31m'"),
    ],
)
def test_a_file_that_is_no_card_is_refused(folder: Path, content: bytes, message: str) -> None:
    path = folder / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(CardError) as raised:
        read_card(path)
    assert message in raised.value.message
    assert str(path) in raised.value.message
    assert len(raised.value.message) < 1000
    assert raised.value.advice


def test_a_byte_order_mark_is_no_fault(folder: Path) -> None:
    path = edited(folder, "classes = 1000", "classes = 7")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_card(path).network.classes == 7

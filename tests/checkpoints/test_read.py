"""Reading a checkpoint: what is recognised and peeled, and what is said of a file that holds no weights."""

from __future__ import annotations

import argparse
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from skdeploy.checkpoints import unwrap
from skdeploy.checkpoints.read import Checkpoint, read_checkpoint
from skdeploy.core.errors import WeightsError
from tests.checkpoints.files import FORMATS, LEGACY, State, refused, small_state, torch_bytes, written


@pytest.fixture
def state() -> State:
    return small_state()


def same(found: Checkpoint, state: State) -> None:
    assert found.tensors.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(found.tensors[key], tensor), key
        assert found.tensors[key].dtype == tensor.dtype
        assert not found.tensors[key].requires_grad


def with_prefix(state: State, prefix: str) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


# ----- formats, wrappers, prefixes


@pytest.mark.parametrize("name", ["weights", "weights.pth", "weights.safetensors", "weights.caffemodel"])
@pytest.mark.parametrize("kind", FORMATS)
def test_tensors_arrive_unchanged_whatever_the_file_is_called(
    kind: str, name: str, state: State, tmp_path: Path
) -> None:
    found = read_checkpoint(written(tmp_path, FORMATS[kind](state), name))
    same(found, state)
    assert (found.peeled, found.dropped) == ((), ())
    assert all(tensor.data_ptr() % tensor.element_size() == 0 for tensor in found.tensors.values())


def test_the_other_zip_program_left_a_storage_unaligned(state: State, tmp_path: Path) -> None:
    path = written(tmp_path, FORMATS["stored again"](state))
    mapped = torch.load(path, mmap=True, weights_only=True)
    assert any(tensor.data_ptr() % tensor.element_size() for tensor in mapped.values())


WRAPPED: dict[str, tuple[Callable[[State], Any], tuple[str, ...], tuple[str, ...]]] = {
    **{name: (lambda state, name=name: {name: state}, (name,), ()) for name in (*unwrap.AVERAGED, *unwrap.WRAPPERS)},
    "twice": (lambda state: {"state_dict": {"model": state}}, ("state_dict", "model"), ()),
    "with a training's rest": (
        lambda state: {"epoch": 3, "model": state, "optimizer": {"param_groups": []}, "model_ema": state},
        ("model_ema",),
        ("epoch", "model", "optimizer"),
    ),
    "averaged weights that are fewer": (
        lambda state: {"model": state, "ema": dict(list(state.items())[:1])},
        ("model",),
        ("ema",),
    ),
    "beside an empty one": (lambda state: {"state_dict": {}, "ema": state}, ("ema",), ("state_dict",)),
    "beside what is not weights": (
        lambda state: {"my_network": state, "optim_d": {"w": torch.zeros(9)}, "loss": torch.tensor(0.4)},
        ("my_network",),
        ("optim_d", "loss"),
    ),
    "three deep": (lambda state: {"model": {"net": {"ema": state}}}, ("model", "net", "ema"), ()),
    "a list": (lambda state: [state, 5], ("entry 0 of a list",), ()),
    "a tuple": (lambda state: (7, {"net": state}), ("entry 1 of a tuple", "net"), ()),
    "SWA": (
        lambda state: with_prefix(state, "module.") | {"n_averaged": torch.tensor(9)},
        ("module.",),
        ("n_averaged",),
    ),
    "thop": (
        lambda state: {**state, "total_ops": torch.zeros(1), "layer.total_params": torch.zeros(1)},
        (),
        ("total_ops", "total_params"),
    ),
    "DataParallel": (lambda state: with_prefix(state, "module."), ("module.",), ()),
    "Lightning": (lambda state: {"state_dict": with_prefix(state, "model.")}, ("state_dict", "model."), ()),
    "compiled": (lambda state: {"net": with_prefix(state, "module._orig_mod.")}, ("net", "module.", "_orig_mod."), ()),
    "odd entries among the tensors": (
        lambda state: {**state, "version": 2, 5: "five", ("a",): 1, "\x1b[2J": 0},
        (),
        ("version", "5", "a tuple", r"'\x1b[2J'"),
    ),
    "what training scripts add": (
        lambda state: {
            "state_dict": state,
            "args": argparse.Namespace(lr=0.1, data=PosixPath("x"), deep=argparse.Namespace()),
            "best": np.float64(76.5),
            "folder": PosixPath("a/b"),
        },
        ("state_dict",),
        ("args", "best", "folder"),
    ),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_are_peeled_and_the_rest_is_dropped_and_both_are_named(
    kind: str, legacy: bool, state: State, tmp_path: Path
) -> None:
    pack, peeled, dropped = WRAPPED[kind]
    found = read_checkpoint(written(tmp_path, torch_bytes(pack(state), **(LEGACY if legacy else {}))))
    same(found, state)
    assert found.peeled == peeled
    assert found.dropped == dropped


def test_a_prefix_that_one_name_lacks_stays(state: State, tmp_path: Path) -> None:
    mixed = with_prefix(state, "module.") | {"extra": torch.zeros(1)}
    found = read_checkpoint(written(tmp_path, save(mixed)))
    same(found, mixed)
    assert found.peeled == ()


def test_a_prefix_with_nothing_behind_it_is_a_name(tmp_path: Path) -> None:
    assert read_checkpoint(written(tmp_path, save({"module.": torch.zeros(1)}))).tensors.keys() == {"module."}


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy pickle"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_become_float32(dtype: torch.dtype, kind: str, state: State, tmp_path: Path) -> None:
    stored = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    found = read_checkpoint(written(tmp_path, FORMATS[kind](stored)))
    same(found, {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in stored.items()})


def test_changing_a_tensor_does_not_change_the_file(state: State, tmp_path: Path) -> None:
    for kind in ("zip", "safetensors"):
        path = written(tmp_path, FORMATS[kind](state))
        for tensor in read_checkpoint(path).tensors.values():
            tensor.zero_()
        assert path.read_bytes() == FORMATS[kind](state)


@pytest.mark.parametrize("first", [b"\x80", b"PK"])
def test_a_safetensors_file_may_begin_like_another(first: bytes, state: State, tmp_path: Path) -> None:
    """Its first eight bytes are the length of the header."""
    whole = save(state)
    length = int.from_bytes(whole[:8], "little")
    wanted = int.from_bytes(first, "little")
    while wanted < length:
        wanted += 1 << 8 * len(first)
    padded = struct.pack("<Q", wanted) + whole[8 : 8 + length].ljust(wanted) + whole[8 + length :]
    assert padded.startswith(first)
    same(read_checkpoint(written(tmp_path, padded)), state)


# ----- damaged and foreign files


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy pickle"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused_wherever_it_ends(kind: str, share: float, state: State, tmp_path: Path) -> None:
    whole = FORMATS[kind](state)
    assert refused(written(tmp_path, whole[: int(len(whole) * share)])).advice


@pytest.mark.parametrize("first", [b"PK", b"\x80", b"\x80\x02", b"PK\x03\x04", b"\x08\0\0\0\0\0\0\0{"])
def test_garbage_behind_a_right_beginning_is_refused(first: bytes, tmp_path: Path) -> None:
    assert refused(written(tmp_path, first + bytes(range(255, 0, -1)) * 4)).advice


def test_bytes_changed_anywhere_are_read_or_refused_and_nothing_else(state: State, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    outcomes = set()
    for kind in ("zip", "legacy pickle", "safetensors"):
        whole = FORMATS[kind](state)
        for _ in range(60):
            spoilt = bytearray(whole)
            for position in random.integers(0, len(whole), 8):
                spoilt[position] = random.integers(0, 256)
            try:
                read_checkpoint(written(tmp_path, bytes(spoilt)))
                outcomes.add("read")
            except WeightsError:
                outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 10\n",
            "not a safetensors file, a PyTorch",
        ),
    ],
)
def test_what_holds_no_format_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    error = refused(written(tmp_path, content))
    assert words in error.message
    assert "save_file" in error.advice


def test_another_programs_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        file.writestr("word/document.xml", "<w/>")
    assert refused(tmp_path / "x.pth").advice


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    assert "it is a folder, not a file" in refused(tmp_path).message
    assert "No such file" in refused(tmp_path / "gone").message


NO_WEIGHTS: dict[str, tuple[Any, str]] = {
    "a list": ([1, 2], "holds a list of 2 entries, without a dict of tensors"),
    "two networks in a list": ([{"w": torch.zeros(2)}, {"w": torch.ones(2)}], "with 2 dicts of tensors"),
    "a tensor": (torch.zeros(2), "holds a Tensor, not a state_dict"),
    "an empty dict": ({}, "it is an empty dict"),
    "an empty wrapper": ({"epoch": 3, "net": {}}, "only epoch: int, net: dict"),
    "an optimizer": (
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], momentum=0.9).state_dict(),
        "the state of an optimizer, but no weights",
    ),
    "an optimizer in a checkpoint": (
        {"epoch": 1, "optimizer": {"state": {0: {"step": torch.zeros(())}}, "param_groups": [{"lr": 0.1}]}},
        "the state of an optimizer, but no weights",
    ),
    "two networks under unknown names": (
        {"generator": {"w": torch.zeros(2)}, "discriminator": {"w": torch.zeros(2)}, "epoch": 1},
        "their names do not show which one is the network: generator, discriminator",
    ),
    "only a loss": ({"criterion": {"w": torch.zeros(2)}}, "holds no weights, only criterion: dict"),
    "wrapped four times": ({"model": {"net": {"ema": {"a": {"w": torch.zeros(2)}}}}}, "holds no weights"),
    "numbers as names": ({0: torch.zeros(2)}, "these tensors have no name: 0"),
    "no name": ({"": torch.zeros(2)}, "these tensors have no name"),
    "a name that would write to the terminal": (
        {"a\x1b[2Jb": torch.zeros(2)},
        r"these tensors have no name: 'a\x1b[2Jb'",
    ),
    "a sparse tensor": ({"w": torch.eye(3).to_sparse()}, "w: torch.float32, torch.sparse_coo, on cpu"),
    "a tensor without values": ({"w": torch.zeros(2, device="meta")}, "on meta"),
    "eleven entries": ({f"entry{i}": i for i in range(11)}, "entry9: int and 1 more"),
}


@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_a_file_without_weights_says_what_it_holds(kind: str, tmp_path: Path) -> None:
    content, words = NO_WEIGHTS[kind]
    error = refused(written(tmp_path, torch_bytes(content)))
    assert words in error.message
    assert "\x1b" not in str(error)
    assert error.advice


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_quantized_tensor_is_not_a_trained_one(tmp_path: Path) -> None:
    quantized = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)
    error = refused(written(tmp_path, torch_bytes({"w": quantized})))
    assert "torch.qint8" in error.message
    assert "before any quantization" in error.advice


@pytest.mark.parametrize("around", [lambda content: content, lambda content: [content] * 2_000], ids=["dict", "list"])
def test_a_dict_that_is_in_a_file_many_times_is_looked_at_once(
    around: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the looks would be as many as the entries of one level to the power of the levels: here 4 million and more."""
    content: Any = {"w": torch.zeros(2)}
    for _ in range(3):
        content = dict.fromkeys(map(str, range(2_000)), content)
    path = written(tmp_path, torch_bytes(around(content)))
    looks: list[object] = []

    def counted(value: object) -> bool:
        looks.append(value)
        return isinstance(value, torch.Tensor)

    monkeypatch.setattr("skdeploy.checkpoints.unwrap.is_tensor", counted)
    assert refused(path).advice
    assert 0 < len(looks) < 50_000  # a few for each of the 6,000 entries of the three levels

"""Reading a checkpoint is safe: sizes are limited before anything is unpacked, and no code runs from a file."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from skdeploy.checkpoints import read
from skdeploy.checkpoints.read import Unread, read_checkpoint
from tests.checkpoints.files import FORMATS, LEGACY, State, refused, rezipped, small_state, torch_bytes, written


@pytest.fixture
def state() -> State:
    return small_state()


# ----- limits


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = written(tmp_path, torch_bytes({"w": torch.zeros(1)}))
    os.truncate(path, read.MAX_FILE_BYTES + 1)  # sparse: takes no disk
    assert "a checkpoint may have 17,179,869,184" in refused(path).message
    os.truncate(path, read.MAX_FILE_BYTES)
    assert "not a whole PyTorch checkpoint" in refused(path).message


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.load must not be reached."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", load)


def test_a_zip_that_unpacks_to_much_more_is_refused_before_torch_opens_it(unopened: None, tmp_path: Path) -> None:
    bomb = rezipped(torch_bytes({"w": torch.zeros(1 << 20)}), zipfile.ZIP_DEFLATED)
    assert len(bomb) < 10_000
    error = refused(written(tmp_path, bomb))
    assert "times its size, which weights never do" in error.message
    assert "torch.save" in error.advice


def test_a_zip_whose_members_lie_over_each_other_is_refused(unopened: None, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data/0", b"\0" * 10_000)
        first = archive.infolist()[0]
        archive.filelist.extend([first] * 20)  # the same bytes, listed again
    assert "times its size" in refused(written(tmp_path, buffer.getvalue())).message


def test_a_zip_over_the_size_limit_once_unpacked_is_refused(
    unopened: None, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = rezipped(torch_bytes({"w": torch.zeros(3000) + torch.randn(3000).half()}), zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(read, "MAX_FILE_BYTES", len(packed) + 1000)
    assert "it unpacks to" in refused(written(tmp_path, packed)).message


def test_a_zip_of_too_many_members_is_refused(unopened: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_TENSORS", 5)
    assert "members, more than 5" in refused(written(tmp_path, torch_bytes({"w": torch.zeros(9)}))).message


def test_a_zip_that_says_its_list_is_gigabytes_is_refused_before_it_is_read(unopened: None, tmp_path: Path) -> None:
    whole = bytearray(FORMATS["stored again"]({"w": torch.zeros(9)}))
    size = read.MAX_DIRECTORY_BYTES + 1
    hole = bytes(size)
    end = whole.rindex(b"PK\x05\x06")
    struct.pack_into("<I", whole, end + 12, size)
    path = written(tmp_path, bytes(whole[:end]) + hole + bytes(whole[end:]))
    assert f"its list of members has {size:,} bytes" in refused(path).message


def test_too_many_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, save({f"w{i}": torch.zeros(1) for i in range(4)}))
    assert len(read_checkpoint(path).tensors) == 4
    monkeypatch.setattr(read, "MAX_TENSORS", 3)
    assert "4 tensors, more than 3" in refused(path).message


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("side", [2, 1 << 20])
def test_one_value_spread_over_a_larger_tensor_is_refused(side: int, legacy: bool, tmp_path: Path) -> None:
    spread = torch.zeros(1, dtype=torch.float16).expand(side, side)
    error = refused(written(tmp_path, torch_bytes({"w": spread}, **(LEGACY if legacy else {}))))
    assert "claim to have more values than the file holds: w" in error.message


def test_many_views_of_one_storage_may_not_claim_more_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = torch.zeros(1000)
    path = written(tmp_path, torch_bytes({f"w{i}": shared for i in range(10)}))
    assert len(read_checkpoint(path).tensors) == 10  # tied weights are fine
    monkeypatch.setattr(read, "MAX_FILE_BYTES", 20_000)
    assert "claim to have more values" in refused(path).message


@pytest.mark.parametrize("numel", [10**6, 10**9])
def test_a_legacy_storage_that_claims_more_than_the_file_is_refused(numel: int, tmp_path: Path) -> None:
    whole = torch_bytes({"w": torch.zeros(1000)}, **LEGACY)
    claim = b"M\xe8\x03"  # 1000 as BININT2: the storage's length and the tensor's
    assert claim in whole
    lying = whole.replace(claim, b"J" + struct.pack("<i", numel))
    refused(written(tmp_path, lying))


def test_a_legacy_file_that_leaves_out_its_values_is_refused(tmp_path: Path) -> None:
    """torch.load gives such a storage whatever lay in memory."""
    whole = io.BytesIO(torch_bytes({"w": torch.zeros(10_000)}, **LEGACY))
    for _ in range(4):  # magic number, protocol, machine, object; then come the keys of the storages, and these
        assert list(pickletools.genops(whole))[-1][0].name == "STOP"
    path = written(tmp_path, whole.getvalue()[: whole.tell()] + pickle.dumps([], protocol=2))
    assert torch.load(path, weights_only=True)["w"].shape == (10_000,)
    assert "its tensors claim to have more values than the file holds" in refused(path).message


def test_a_safetensors_header_of_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    path = written(tmp_path, struct.pack("<Q", 1 << 40) + b"{" + b" " * 100)
    assert "not a safetensors file" in refused(path).message
    assert "not a whole" in refused(written(tmp_path, struct.pack("<Q", 1 << 20) + b"{}")).message


@pytest.mark.parametrize(
    "header",
    [
        '{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,800]}}',
        '{"w":{"dtype":"F32","shape":[200],"data_offsets":[0,8]}}',
        '{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}',
        '{"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
    ],
    ids=["beyond the end", "shape of more", "backwards", "overlap"],
)
def test_safetensors_offsets_that_lie_are_refused(header: str, tmp_path: Path) -> None:
    body = struct.pack("<Q", len(header)) + header.encode() + bytes(12)
    assert "not a whole safetensors file" in refused(written(tmp_path, body)).message


# ----- no code runs


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch '{self.mark}'",)


class PayloadTensor(torch.Tensor):
    """Looks like a tensor, and runs a command when it is unpickled."""

    mark: Path

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        return os.system, (f"touch '{self.mark}'",)


def payload_tensor(mark: Path) -> PayloadTensor:
    tensor = torch.zeros(2).as_subclass(PayloadTensor)
    tensor.mark = mark
    return tensor


def evaluated(mark: Path) -> Any:
    class Evaluated:
        def __reduce__(self) -> tuple[object, ...]:
            return eval, (f"open({str(mark)!r}, 'w').close()",)

    return Evaluated()


PACKS: dict[str, Callable[[Any], bytes]] = {
    "zip": torch_bytes,
    "legacy": lambda content: torch_bytes(content, **LEGACY),
    "pickle": pickle.dumps,
    "pickle 2": lambda content: pickle.dumps(content, protocol=2),
    "wrapped": lambda content: torch_bytes({"state_dict": content}),
    "in what is dropped": lambda content: torch_bytes({"state_dict": {"w": torch.zeros(1)}, "epoch": content}),
    "in a namespace": lambda content: torch_bytes({"w": torch.zeros(1), "args": argparse.Namespace(deep=content)}),
    "compressed": lambda content: rezipped(torch_bytes(content), zipfile.ZIP_DEFLATED),
}


@pytest.mark.parametrize("payload", [Payload, payload_tensor, evaluated], ids=["object", "tensor", "eval"])
@pytest.mark.parametrize("pack", PACKS)
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    pack: str, payload: Callable[[Path], Any], tmp_path: Path
) -> None:
    mark = tmp_path / "it ran"
    path = written(tmp_path, PACKS[pack]({"conv.weight": payload(mark)}))
    assert "is refused" in refused(path).message
    assert not mark.exists()
    if pack.startswith("pickle"):
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert mark.exists()  # the payload works where it is let


def test_what_is_let_through_beside_the_weights_is_a_stand_in(tmp_path: Path) -> None:
    """Whatever a file does with the names that are let through, it does to an ``Unread``."""
    path = written(tmp_path, torch_bytes({"best": np.float64(1.5), "args": argparse.Namespace(a=1)}, **LEGACY))
    found = read.read_pickle(path)
    assert {type(value) for value in found.values()} == {Unread}
    assert vars(found["args"]) == {}


def test_names_are_let_through_only_while_reading(tmp_path: Path) -> None:
    path = written(tmp_path, torch_bytes({"w": torch.zeros(1), "best": np.float64(1.5)}))
    read_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError, match=r"multiarray\.scalar"):
        torch.load(path, weights_only=True)


def test_a_whole_pickled_module_is_refused_with_the_class_it_wants(tmp_path: Path) -> None:
    error = refused(written(tmp_path, torch_bytes(torch.nn.Linear(2, 2))))
    assert "torch.nn.modules.linear.Linear" in error.message
    assert "state_dict" in error.advice


def test_a_program_is_no_checkpoint(unopened: None, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and such files are about all the same
        torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "x.pt"))
    error = refused(tmp_path / "x.pt")
    assert "TorchScript" in error.message
    assert "torch.jit.load(path).state_dict()" in error.advice

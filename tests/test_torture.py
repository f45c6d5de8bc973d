"""A short slice of ``make torture``: damaged files are read or refused, and never end in anything else."""

from __future__ import annotations

import json
import shutil
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from skdeploy.core.errors import UsageError
from tools.torture.mutate import Mutator, of_bytes, of_headed, of_onnx, of_text, of_zip
from tools.torture.readers import KINDS, Kind, make_seeds
from tools.torture.record import Record
from tools.torture.worker import damaged, outcome

SEED = 17
INPUTS = 12  # of each kind: with the good files they take three seconds


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    seeds, scratch = tmp_path / "seeds", tmp_path / "scratch"
    make_seeds(seeds, "torchscript")  # which takes a tenth of the time
    faults = []
    for name, kind in KINDS.items():
        folder = Path(shutil.copytree(seeds, scratch)) if kind.whole else scratch
        folder.mkdir(exist_ok=True)
        path = folder / (kind.file if kind.whole else Path(kind.file).name)
        content = (seeds / kind.file).read_bytes()
        path.write_bytes(content)
        if name == "list":
            shutil.copy(seeds / "image.png", folder)
            shutil.copy(seeds / "image.jpg", folder)
        assert outcome(kind, path) == "read", name
        for index in range(INPUTS):
            kind.place(path, damaged(kind, content, SEED, index))
            ended = outcome(kind, path)
            if ended.split(" ")[0] not in ("read", "refused"):
                faults.append((name, index, ended))
        shutil.rmtree(folder)
    assert faults == []


def raising(error: BaseException) -> Kind:
    def read(path: Path) -> None:
        raise error

    return Kind("x", of_bytes, read)


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (UsageError("no"), "refused 2"),
        (UsageError(""), "traceback an error that says nothing"),
        (MemoryError(), "memory"),
        (ValueError("bad\nvalue"), "bad value"),
        (SystemExit(0), "traceback SystemExit"),
    ],
)
def test_what_a_reader_raises_is_told_apart(error: BaseException, ended: str, tmp_path: Path) -> None:
    assert ended in outcome(raising(error), tmp_path / "x")


GOOD = {
    of_bytes: bytes(range(200)),
    of_text: b'[export]\nfp16 = true\nimgsz = 32\nlabels = "labels.txt"\n',
    of_headed: (27).to_bytes(8, "little") + b'{"a":{"dtype":"F32","b":1}}' + bytes(8),
}


@pytest.mark.parametrize("mutate", [of_bytes, of_text, of_headed], ids=lambda mutate: mutate.__name__)
def test_a_seed_names_an_input_and_most_differ_from_the_good_one(mutate: Mutator) -> None:
    good = GOOD[mutate]
    made = [mutate(good, Random(seed)) for seed in range(200)]
    assert made == [mutate(good, Random(seed)) for seed in range(200)]
    assert sum(each != good for each in made) > 180
    assert len(set(made)) > 150


def test_damage_inside_an_archive_and_a_graph_is_found_by_their_readers(tmp_path: Path) -> None:
    """So the damage is behind the checksum of the one, and behind the parser of the other."""
    import zipfile

    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    np.savez(tmp_path / "x.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    content = (tmp_path / "x.npz").read_bytes()
    whole = 0
    for seed in range(100):
        (tmp_path / "y.npz").write_bytes(of_zip(content, Random(seed)))
        try:
            with zipfile.ZipFile(tmp_path / "y.npz") as archive:
                whole += archive.testzip() is None
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError):
            continue
    assert whole > 50
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
    model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [out]))
    made = [of_onnx(model.SerializeToString(), Random(seed)) for seed in range(100)]
    parsed = 0
    for each in made:
        try:
            onnx.ModelProto.FromString(each)
        except Exception:  # noqa: BLE001  (protobuf's own error, which has no public name)
            continue
        parsed += 1
    assert parsed > 70
    assert len(set(made)) > 60


def test_a_record_says_which_machine_has_made_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Today's record on another machine: the file's first part, which counts no machines, stays that of the first one."""
    path, machine = tmp_path / "x.json", {"date": "2026-11-01", "processor": "the first"}
    kept = {"seed": 1, "inputs": 268, "kinds": {}}
    path.write_text(json.dumps({"machine": machine, "damaged_files": kept}), encoding="utf-8")

    def made(found: dict[str, Any], again: int, **here: str) -> list[tuple[str, int]]:
        monkeypatch.setattr("tools.torture.record.describe", lambda: dict(here))
        record = Record(path, "damaged_files", itemgetter("inputs"), 1)
        record.forget(again)
        record.save(found)
        written = json.loads(path.read_text(encoding="utf-8"))
        assert written["damaged_files"] == {"seed": 1, **found}
        return [(each["processor"], each["made"]) for each in written["machines"]]

    first = [("the first", 268)]
    assert made({"inputs": 300}, 0, date="2026-11-02", processor="the second") == [*first, ("the second", 32)]
    assert made({"inputs": 340}, 0, date="2026-11-03", processor="the second") == [*first, ("the second", 72)]
    assert made({"inputs": 340}, 100, date="2026-11-03", processor="the third") == [
        ("the first", 240),
        ("the second", 0),
        ("the third", 100),
    ]
    assert Record(path, "damaged_files", itemgetter("inputs"), 2).machines == []

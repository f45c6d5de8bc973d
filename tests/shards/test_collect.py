"""What is missing, doubled, foreign or damaged among parts is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from skdeploy.core.errors import IntegrityError, UsageError
from skdeploy.core.progress import Silent
from skdeploy.shards.collect import checked, collect, paths_of
from skdeploy.shards.part import Part, write_part
from tests.notes import Notes
from tests.shards.parts import JOB, part_of


def merged(*parts: Part, **options: Any) -> list[int]:
    found = checked(parts, JOB, Silent(), **{"allow_mixed_cpus": False} | options)
    return [part.header.index for part in found]


def test_parts_come_in_the_order_of_their_shards() -> None:
    assert merged(part_of(3), part_of(1), part_of(2)) == [1, 2, 3]


FOREIGN: dict[str, tuple[Part, str]] = {
    "another bundle": (
        part_of(2, made_of={"model.onnx on onnxruntime": "b" * 64}),
        "part-2 was made of another bundle",
    ),
    "another data set": (part_of(2, data_sha256="e" * 64), "part-2 was made of other data.*names or labels"),
    "other images": (part_of(2, samples=41), "part-2 was made of other data: 41 samples"),
    "other options": (
        part_of(2, options={"batch": 4}),
        "part-2 was made with other options:\n  batch: 4 in the part, 8",
    ),
    "other versions": (part_of(2, versions={"onnxruntime": "2.0"}), "part-2 was made with other versions.*\n.*2.0"),
    "another verb": (part_of(2, verb="calibrate"), "part-2 is a part of `skdeploy calibrate`"),
    "another count": (part_of(2, 4), "part-1 is shard 1/3 and part-2 is shard 2/4"),
    "another machine": (part_of(2, cpu="x86_64 B"), "2 kinds of machines"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_part_is_refused_by_name(name: str) -> None:
    part, message = FOREIGN[name]
    with pytest.raises(UsageError, match=f"(?s){message}"):
        merged(part_of(1), part, part_of(3))


def test_a_missing_and_a_doubled_part_are_named() -> None:
    with pytest.raises(UsageError, match="1 of 3 parts are missing: shard 2/3"):
        merged(part_of(1), part_of(3))
    with pytest.raises(UsageError, match="part-2 and part-2 are both shard 2/3"):
        merged(part_of(1), part_of(2), part_of(2), part_of(3))


def test_machines_of_several_kinds_are_merged_if_allowed_and_that_is_said() -> None:
    tell = Notes()
    parts = [part_of(1), part_of(2, cpu="x86_64 B"), part_of(3)]
    assert len(checked(parts, JOB, tell, allow_mixed_cpus=True)) == 3
    assert "2 kinds of machines" in tell.notes[0]


def test_a_pattern_takes_all_files_and_one_that_names_none_is_refused(tmp_path: Path) -> None:
    for index in (1, 2, 3):
        write_part(tmp_path / f"part-{index}", part_of(index).encode())
    pattern = f"{tmp_path}/part-*"
    assert len(collect([pattern, f"{tmp_path}/part-1"], JOB, Silent())) == 3  # the same file twice counts once
    with pytest.raises(UsageError, match="--parts other-\\*: no such file"):
        collect(["other-*"], JOB, Silent())
    (tmp_path / "part-2").write_bytes((tmp_path / "part-2").read_bytes()[:-9])
    with pytest.raises(IntegrityError, match="part-2 is cut off or damaged"):
        collect([pattern], JOB, Silent())


@pytest.mark.parametrize("pattern", [".", "/", "**x", "[", "a\0b"])
def test_what_is_no_pattern_names_no_file(pattern: str) -> None:
    with pytest.raises(UsageError, match="no such file"):
        paths_of([pattern])

"""A divided calibration writes the bytes of the undivided one, in any number of parts and any order, or refuses by name."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from skdeploy.core.errors import CalibrationError, IntegrityError, UsageError
from skdeploy.core.progress import Silent
from skdeploy.core.spec import CalibrationMethod
from skdeploy.line.calibrate_shards import calibrate_shard, merge_calibration, part_of_worker
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.export import calibrate
from skdeploy.line.options import ExportOptions
from skdeploy.shards.collect import checked
from skdeploy.shards.part import Part, decode
from skdeploy.shards.shard import Shard

IMAGES = 205  # no multiple of a batch; 1 % are 2


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of two classes, two of which are broken, and a third pair of which are equal."""
    folder = tmp_path_factory.mktemp("pictures")
    numbers = np.random.default_rng(0)
    for index in range(IMAGES):
        (folder / str(index % 2)).mkdir(exist_ok=True)
        coarse = numbers.integers(0, 256, (9, 10, 3)).repeat(4, axis=0).repeat(4, axis=1).astype(np.uint8)
        Image.fromarray(coarse).save(folder / str(index % 2) / f"{index:03}.png")
    (folder / "0/002.png").write_bytes(b"broken")
    (folder / "1/007.png").write_bytes(b"broken")
    (folder / "1/201.png").write_bytes((folder / "0/000.png").read_bytes())
    return folder


@pytest.fixture
def source(exported: Path) -> ExportOptions:
    return ExportOptions(str(exported))


def parts_of(source: ExportOptions, asked: CalibrationOptions, count: int) -> list[Part]:
    """All parts, each as it is read from its file."""
    made = [calibrate_shard(source, asked, Shard(index, count), Silent()) for index in range(1, count + 1)]
    return [decode(part.encode(), f"part-{part.header.index}") for part in made]


def merged(source: ExportOptions, asked: CalibrationOptions, parts: list[Part], path: Path, **given: Any) -> bytes:
    """The ranges file of parts that came in a random order."""
    shuffled = random.sample(parts, len(parts))
    given = {"allow_mixed_cpus": False} | given
    merge_calibration(source, asked, path, Silent(), collect=lambda job: checked(shuffled, job, Silent(), **given))
    return path.read_bytes()


def changed(part: Part, **facts: Any) -> Part:
    header = part.header.model_copy(update={"facts": {**part.header.facts, **facts}})
    return Part(header, part.arrays, part.name)


@pytest.mark.parametrize(
    ("method", "counts"),
    [
        (None, (2, 7)),
        pytest.param(CalibrationMethod.MINMAX, (1, 30), marks=pytest.mark.slow),  # 30 shards, of which each equalizes
    ],
)
def test_any_number_of_shards_in_any_order_writes_the_same_bytes(
    method: CalibrationMethod | None, counts: tuple[int, ...], source: ExportOptions, pictures: Path, tmp_path: Path
) -> None:
    """By a choice among methods with rounded weights, and by ranges alone: audit, means, ranges, choice and rounding."""
    asked = CalibrationOptions(images=pictures, method=method)
    calibrate(source, asked, tmp_path / "whole.json")
    whole = (tmp_path / "whole.json").read_bytes()
    for count in counts:  # 26 batches: some of 30 shards are empty
        assert merged(source, asked, parts_of(source, asked, count), tmp_path / "merged.json") == whole


def test_a_worker_gives_the_part_that_a_shard_gives(source: ExportOptions, pictures: Path) -> None:
    asked = CalibrationOptions(images=pictures)
    part = calibrate_shard(source, asked, Shard(2, 3), Silent())
    twin = decode(part_of_worker(source, asked, part.header.job, Shard(2, 3)), "part")
    assert twin.header.facts == part.header.facts
    assert all(np.array_equal(twin.arrays[name], array) for name, array in part.arrays.items())
    other = part.header.job.model_copy(update={"data_sha256": "0" * 64})
    with pytest.raises(UsageError, match="this worker's share was made of other data"):
        part_of_worker(source, asked, other, Shard(2, 3))


def test_one_percent_of_all_images_may_be_unreadable_though_no_shard_alone_has_more(
    source: ExportOptions, pictures: Path, tmp_path: Path
) -> None:
    copies = tmp_path / "copies"
    for file in sorted(pictures.rglob("*.png")):
        (copies / file.parent.name).mkdir(parents=True, exist_ok=True)
        (copies / file.parent.name / file.name).write_bytes(file.read_bytes())
    (copies / "0/100.png").write_bytes(b"broken")
    asked = CalibrationOptions(images=copies)
    parts = parts_of(source, asked, 10)
    with pytest.raises(CalibrationError, match="3 of the 205 images from copies cannot be used; at most 2"):
        merged(source, asked, parts, tmp_path / "merged.json")
    assert not (tmp_path / "merged.json").exists()


def test_parts_of_other_weights_images_and_options_are_refused(
    source: ExportOptions, asked: ExportOptions, pictures: Path, tmp_path: Path
) -> None:
    calibration = CalibrationOptions(images=pictures, number=40)
    parts = parts_of(source, calibration, 2)
    out = tmp_path / "merged.json"
    other = replace(asked, weights=None, seed=3)
    with pytest.raises(UsageError, match=r"part-. was made of another bundle.*\n  weights of the FP32 graph"):
        merged(other, calibration, parts, out)
    with pytest.raises(UsageError, match=r"part-. was made of other data: 40 samples"):
        merged(source, CalibrationOptions(images=pictures, number=41), parts, out)
    with pytest.raises(UsageError, match=r"part-. was made with other options:\n  algorithm"):
        merged(source, CalibrationOptions(images=pictures, number=40, shift=False), parts, out)
    with pytest.raises(UsageError, match="2 kinds of machines"):
        merged(source, calibration, parts, out, here="aarch64 Neoverse")


def test_parts_of_graphs_that_were_equalized_differently_are_refused_by_name(
    source: ExportOptions, pictures: Path, tmp_path: Path
) -> None:
    asked = CalibrationOptions(images=pictures, number=40)
    first, second = parts_of(source, asked, 2)
    out = tmp_path / "merged.json"
    with pytest.raises(UsageError, match=r"part-1 and part-2 were measured in graphs that were equalized differently"):
        merged(source, asked, [first, changed(second, plan="0" * 64)], out)
    both = [changed(part, plan="0" * 64) for part in (first, second)]
    with pytest.raises(IntegrityError, match=r"part-1 does not hold what shard 1/2"):
        merged(source, asked, both, out)


def test_a_part_whose_content_is_not_its_shards_is_refused(
    source: ExportOptions, pictures: Path, tmp_path: Path
) -> None:
    asked = CalibrationOptions(images=pictures, number=40)
    first, second = parts_of(source, asked, 2)
    noted = second.header.facts["noted"]
    assert isinstance(noted, dict)  # facts of a header are any JSON
    for broken in (
        changed(second, noted=noted | {"used": [0] * 16}),
        changed(second, files=[]),
        Part(second.header, {name: array[..., 1:] for name, array in second.arrays.items()}, second.name),
        Part(second.header, {}, second.name),
    ):
        with pytest.raises(IntegrityError, match=r"part-2 does not hold what shard 2/2"):
            merged(source, asked, [first, broken], tmp_path / "merged.json")
    assert not (tmp_path / "merged.json").exists()

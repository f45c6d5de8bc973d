"""A divided evaluation is the undivided one in every bit, in any number of parts and any order; a foreign part is refused."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from skdeploy.accuracy.evaluate import EvaluationOptions, evaluate
from skdeploy.accuracy.evaluate_shards import evaluate_shard, merge_evaluation
from skdeploy.accuracy.gate import Evaluation
from skdeploy.core.errors import IntegrityError, UsageError
from skdeploy.core.progress import Silent
from skdeploy.shards.collect import checked
from skdeploy.shards.part import Part, decode
from skdeploy.shards.shard import Shard
from tests.accuracy.figures import IMAGES, figures, folder_of_images

pytestmark = pytest.mark.usefixtures("cache")


def parts_of(folder: Path, options: EvaluationOptions, count: int) -> list[Part]:
    """All parts, each as it is read from its file."""
    made = [evaluate_shard(folder, options, Shard(index, count), Silent()) for index in range(1, count + 1)]
    return [decode(part.encode(), f"part-{part.header.index}") for part in made]


def merged(folder: Path, options: EvaluationOptions, parts: list[Part], **given: Any) -> Evaluation:
    """The evaluation of parts that came in a random order."""
    shuffled = random.sample(parts, len(parts))
    given = {"allow_mixed_cpus": False} | given
    return merge_evaluation(folder, options, Silent(), collect=lambda job: checked(shuffled, job, Silent(), **given))


@pytest.fixture
def pictures(tmp_path: Path, pixels: NDArray[np.uint8], logits: NDArray[np.float32]) -> Path:
    return folder_of_images(tmp_path / "pictures", pixels, logits.argmax(1).tolist())


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_any_number_of_shards_in_any_order_gives_the_same_bits(
    bundles: tuple[Path, Path], data: Path, count: int
) -> None:
    options = EvaluationOptions(data, max_drop=20)
    whole = evaluate(bundles[0], options)
    assert figures(merged(bundles[0], options, parts_of(bundles[0], options, count))) == figures(whole)


def test_the_logits_of_the_parts_are_those_of_one_run(bundles: tuple[Path, Path], data: Path) -> None:
    options = EvaluationOptions(data)
    (whole,) = parts_of(bundles[0], options, 1)
    for count in (2, 7):
        parts = parts_of(bundles[0], options, count)
        for name, logits in whole.arrays.items():
            assert logits.shape == (IMAGES, 5)
            np.testing.assert_array_equal(np.concatenate([part.arrays[name] for part in parts]), logits)


def test_image_files_give_the_digest_of_one_run_though_no_shard_reads_all(
    bundles: tuple[Path, Path], pictures: Path
) -> None:
    options = EvaluationOptions(pictures, num_images=40)
    parts = parts_of(bundles[0], options, 3)
    assert sum(len(part.header.facts["files"]) for part in parts) == 40  # type: ignore[arg-type]  # facts are JSON; these are a list
    assert figures(merged(bundles[0], options, parts)) == figures(evaluate(bundles[0], options))


def test_options_of_the_gate_are_the_merges_and_change_no_part(bundles: tuple[Path, Path], data: Path) -> None:
    parts = parts_of(bundles[0], EvaluationOptions(data), 2)
    options = EvaluationOptions(data, max_drop=20, confidence=90)
    assert figures(merged(bundles[0], options, parts)) == figures(evaluate(bundles[0], options))


def many(folder: Path, pictures: Path, count: int) -> list[Path]:
    """More images of the same content under other names, by class."""
    originals = sorted(pictures.rglob("*.png"))
    for index in range(count):
        original = originals[index % len(originals)]
        place = folder / original.parent.name / f"{index:04}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(original, place)
    return sorted(folder.rglob("*.png"))


def test_one_percent_of_all_images_may_be_unreadable_though_it_is_more_of_a_shard(
    bundles: tuple[Path, Path], pictures: Path, tmp_path: Path
) -> None:
    files = many(tmp_path / "many", pictures, 200)
    for place in (3, 4):  # both in the first shard of twenty: a fifth of it
        files[place].write_bytes(b"broken")
    options = EvaluationOptions(tmp_path / "many")
    whole = evaluate(bundles[0], options)
    assert len(whole.unreadable) == 2
    assert figures(merged(bundles[0], options, parts_of(bundles[0], options, 20))) == figures(whole)
    files[150].write_bytes(b"broken")  # no shard alone has more than 1 % of 200
    with pytest.raises(UsageError, match="at most 2 may be unreadable"):
        merged(bundles[0], options, parts_of(bundles[0], options, 20))


def test_a_shard_with_more_unreadable_images_than_all_may_have_ends_at_once(
    bundles: tuple[Path, Path], pictures: Path
) -> None:
    sorted(pictures.rglob("*.png"))[3].write_bytes(b"broken")
    with pytest.raises(UsageError, match=f"of all {IMAGES}, at most 0"):
        evaluate_shard(bundles[0], EvaluationOptions(pictures), Shard(1, 4), Silent())


def test_parts_of_another_bundle_data_set_and_batch_are_refused(
    bundles: tuple[Path, Path], data: Path, pictures: Path, tmp_path: Path
) -> None:
    parts = parts_of(bundles[0], EvaluationOptions(pictures), 2)
    with pytest.raises(UsageError, match=r"part-. was made of another bundle"):
        merged(bundles[1], EvaluationOptions(pictures), parts)
    with pytest.raises(UsageError, match=r"part-. was made of other data"):
        merged(bundles[0], EvaluationOptions(data), parts)
    with pytest.raises(UsageError, match=r"part-. was made with other options:\n  batch: 8"):
        merged(bundles[0], EvaluationOptions(pictures, batch=4), parts)
    files = sorted(pictures.rglob("*.png"))
    shutil.copy(files[1], files[0])  # the same names and labels, another image
    with pytest.raises(UsageError, match=r"part-1 was made of other data: .* has another content here"):
        merged(bundles[0], EvaluationOptions(pictures), parts)


def test_a_part_whose_content_is_not_its_shards_is_refused(bundles: tuple[Path, Path], data: Path) -> None:
    options = EvaluationOptions(data)
    first, second = parts_of(bundles[0], options, 2)
    short = Part(second.header, {name: array[1:] for name, array in second.arrays.items()}, second.name)
    with pytest.raises(IntegrityError, match=r"part-2 does not hold"):
        merged(bundles[0], options, [first, short])
    ran = {**second.header.facts, "ran": ["model.onnx on onnxruntime"]}
    lacks = Part(second.header.model_copy(update={"facts": ran}), second.arrays, second.name)
    with pytest.raises(UsageError, match=r"model\.fp16\.onnx on onnxruntime ran in part-1, but not in part-2"):
        merged(bundles[0], options, [first, lacks])


def test_machines_of_two_kinds_are_merged_only_if_allowed(bundles: tuple[Path, Path], data: Path) -> None:
    options = EvaluationOptions(data)
    first, second = parts_of(bundles[0], options, 2)
    other = Part(second.header.model_copy(update={"cpu": "aarch64 Neoverse"}), second.arrays, second.name)
    with pytest.raises(UsageError, match="2 kinds of machines"):
        merged(bundles[0], options, [first, other])
    assert merged(bundles[0], options, [first, other], allow_mixed_cpus=True).images == IMAGES


def test_a_part_that_is_there_is_not_made_again_nor_replaced_by_another_shard(
    bundles: tuple[Path, Path], data: Path
) -> None:
    options = EvaluationOptions(data)
    first, second = parts_of(bundles[0], options, 2)
    assert evaluate_shard(bundles[0], options, Shard(1, 2), Silent(), earlier=first) is first
    assert evaluate_shard(bundles[0], options, Shard(1, 3), Silent(), earlier=second).header.shard == Shard(1, 3)
    with pytest.raises(UsageError, match="holds shard 2/2, which shard 1/2 would replace"):
        evaluate_shard(bundles[0], options, Shard(1, 2), Silent(), earlier=second)


def test_a_receipt_is_refused(bundles: tuple[Path, Path], data: Path) -> None:
    parts = parts_of(bundles[0], EvaluationOptions(data), 1)
    with pytest.raises(UsageError, match="--receipt records what this device"):
        merged(bundles[0], EvaluationOptions(data, receipt=True), parts)

"""``sensitivity`` divided by unit: equal in every bit to one run, by parts in any order and by workers."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from skdeploy.accuracy.sensitivity import SensitivityOptions, sensitivity_of
from skdeploy.accuracy.sensitivity_shards import merge_sensitivity, part_of_worker, sensitivity_job, sensitivity_shard
from skdeploy.bundle.folder import load_bundle
from skdeploy.core.errors import IntegrityError, UsageError
from skdeploy.core.progress import Silent
from skdeploy.quant.sensitivity import SensitivityReport
from skdeploy.shards.collect import checked
from skdeploy.shards.part import Part, decode
from skdeploy.shards.shard import Shard
from tests.cli.conftest import Run


@pytest.fixture
def options(evaluation: Path) -> SensitivityOptions:
    return SensitivityOptions(evaluation, 12)


def parts_of(bundle: Path, options: SensitivityOptions, count: int) -> list[Part]:
    """All parts, each as it is read from its file."""
    made = [sensitivity_shard(bundle, options, Shard(index, count), Silent()) for index in range(1, count + 1)]
    return [decode(part.encode(), f"part-{part.header.index}") for part in made]


def merged(bundle: Path, options: SensitivityOptions, parts: list[Part]) -> SensitivityReport:
    """The report of parts that came in a random order."""
    shuffled = random.sample(parts, len(parts))
    return merge_sensitivity(
        bundle, options, Silent(), collect=lambda job: checked(shuffled, job, Silent(), allow_mixed_cpus=False)
    )


def changed(part: Part, **facts: Any) -> Part:
    header = part.header.model_copy(update={"facts": {**part.header.facts, **facts}})
    return Part(header, part.arrays, part.name)


def test_any_number_of_shards_gives_the_report_and_the_evidence_of_one_run(
    int8: Path, options: SensitivityOptions
) -> None:
    whole = sensitivity_of(load_bundle(int8), options)
    assert len(whole.units) == 4
    evidence = int8 / "evidence/sensitivity.json"
    evidence.unlink()
    for count in (1, 2, 7):  # of seven, some are empty
        assert merged(int8, options, parts_of(int8, options, count)) == whole
    assert evidence.is_file()


def test_a_worker_gives_the_part_that_a_shard_gives(once_int8: Path, options: SensitivityOptions) -> None:
    job, _ = sensitivity_job(once_int8, options, Silent())
    made = decode(part_of_worker(once_int8, options, job, Shard(2, 4)), "part")
    assert made.header.facts == sensitivity_shard(once_int8, options, Shard(2, 4), Silent()).header.facts
    other = job.model_copy(update={"made_of": dict.fromkeys(job.made_of, "0" * 64)})
    with pytest.raises(UsageError, match="this worker's share was made of another bundle"):
        part_of_worker(once_int8, options, other, Shard(2, 4))


def test_parts_of_other_samples_machines_and_content_are_refused_by_name(
    int8: Path, options: SensitivityOptions, tmp_path: Path
) -> None:
    first, second = parts_of(int8, options, 2)
    with pytest.raises(UsageError, match=r"part-. was made of other data: 12 samples"):
        merged(int8, SensitivityOptions(options.data, 13), [first, second])
    with pytest.raises(UsageError, match=r"1 of 2 parts are missing: shard 2/2"):
        merged(int8, options, [first])
    with pytest.raises(IntegrityError, match=r"part-2 does not hold what shard 2/2"):
        merged(int8, options, [first, changed(second, rows=[])])
    with pytest.raises(IntegrityError, match=r"part-1 does not hold what shard 1/2"):
        merged(int8, options, [changed(first, all_int8=None), second])
    fp32 = second.header.facts["fp32"]
    assert isinstance(fp32, dict)  # facts of a header are any JSON
    with pytest.raises(UsageError, match="FP32 gives other figures in part-2 than in part-1"):
        merged(int8, options, [first, changed(second, fp32=fp32 | {"top1": 0.5})])


def test_parts_and_workers_print_what_one_run_prints(run: Run, int8: Path, evaluation: Path, tmp_path: Path) -> None:
    command = ("sensitivity", int8, "--data", evaluation, "--num-images", 12)
    whole = run(*command, "--json").out
    for index in (1, 2):
        assert run(*command, "--shard", f"{index}/2", "-o", tmp_path / f"part-{index}").code == 0
    assert run(*command, "--parts", tmp_path / "part-*", "--json").out == whole
    shutil.copy(tmp_path / "part-1", tmp_path / "part-3")
    done = run(*command, "--parts", tmp_path / "part-*")
    assert (done.code, "are both shard 1/2" in done.err) == (2, True)
    done = run(*command, "--workers", 2, "--json")
    assert done.out == whole
    assert "4 of 4 shards of an earlier run are reused" in run(*command, "--workers", 1).err

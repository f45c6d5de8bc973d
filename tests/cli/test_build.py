"""``skdeploy build``: real builds with TensorRT-RTX, which needs no GPU, into copies of one bundle."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from skdeploy import engines
from skdeploy.bundle.folder import load_bundle
from skdeploy.core.files import digest_file
from skdeploy.core.progress import Silent
from skdeploy.engines.options import BatchProfile
from skdeploy.line.building import build_engine
from skdeploy.line.options import BuildRequest
from skdeploy.parity.report import ParityReport
from skdeploy.report.progress import ConsoleProgress
from tests.cli.conftest import Run, Snapshot
from tests.cli.edited import edited_row

pytestmark = pytest.mark.skipif(bool(engines.obstacle("tensorrt_rtx")[0]), reason="TensorRT-RTX does not build here")
ENGINE = "engines/tensorrt_rtx-fp16.engine"
RTX = ("--target", "tensorrt_rtx")


def parity(folder: Path) -> ParityReport:
    return ParityReport.model_validate_json((folder / "parity.json").read_text(encoding="utf-8"))


def batches(profile: dict[str, list[list[int]]]) -> list[int]:
    """The (min, opt, max) batch of a profile of one input."""
    (shapes,) = profile.values()
    return [shape[0] for shape in shapes]


# What a build gives


def test_an_engine_is_added_and_the_second_time_it_is_up_to_date(run: Run, bundle: Path, snapshot: Snapshot) -> None:
    first = run("build", bundle, *RTX)
    assert first.code == 0, first.err
    load_bundle(bundle).check_all()
    before = snapshot(bundle)
    second = run("build", bundle, *RTX, "--json")
    assert second.code == 0
    assert second.json["reused"] is True
    assert snapshot(bundle) == before


def test_auto_is_what_export_means_by_it_and_json_tells_all_of_the_engine(run: Run, built: Path) -> None:
    expected, reason = engines.choose("auto")
    result = run("build", built, "--json")
    assert result.code == 0
    assert result.json["options"]["compiler"] == expected
    assert result.json["reason"] == reason
    found = run("build", built, *RTX, "--json").json
    assert (found["engine"], found["reused"]) == (ENGINE, True)
    assert found["sha256"] == digest_file(built / ENGINE)
    assert found["size_bytes"] == (built / ENGINE).stat().st_size == found["details"]["plan_bytes"]
    assert found["options"]["profile"] == [1, 8, 32]
    assert found["details"]["built_for"]["compiler"] == "tensorrt_rtx"
    assert found["details"]["proof"]["source"] == "definition"


def test_an_export_with_the_same_options_finds_the_engine_up_to_date(
    run: Run, built: Path, again: list[object]
) -> None:
    arguments = ["tensorrt_rtx" if argument == "onnx" else argument for argument in again]
    result = run(*arguments, "-o", built, "--json")
    assert result.code == 0, result.err
    assert {row["path"]: row["reused"] for row in result.json["artifacts"]}[ENGINE] is True
    assert {row["path"]: row["reused"] for row in result.json["artifacts"]}["parity.json"] is False


def test_another_option_is_another_engine_in_the_place_of_the_first(run: Run, built: Path) -> None:
    before = digest_file(built / ENGINE)
    result = run("build", built, *RTX, "--profile", "1/2/4", "--profile", "16/16/16", "--json")
    assert result.code == 0, result.err
    assert result.json["reused"] is False
    assert batches(result.json["details"]["profile"]) == [1, 2, 4]
    assert [batches(profile) for profile in result.json["details"]["more_profiles"]] == [[16, 16, 16]]
    assert digest_file(built / ENGINE) != before
    found = load_bundle(built)
    found.check_all()
    assert [artifact.path for artifact in found.manifest.artifacts].count(ENGINE) == 1


def test_the_last_duration_is_told_while_an_engine_is_built_again(built: Path) -> None:
    details: list[str] = []

    class Listening(Silent):
        def update(self, detail: str) -> None:
            details.append(detail)

    last = load_bundle(built).artifact(ENGINE)
    assert last is not None
    build_engine(built, BuildRequest(BatchProfile(1, 1, 2), target="tensorrt_rtx"), Listening())
    assert details
    assert all(detail.endswith(f"; the last build took {last.provenance.seconds:.1f} s") for detail in details)


# What a build does not claim


def test_the_parity_report_names_the_new_engine_unproven_and_keeps_the_rest(exported: Path, once_built: Path) -> None:
    before, after = parity(exported), parity(once_built)
    *kept, engine = after.comparisons
    assert tuple(kept) == before.comparisons
    assert (engine.artifact, engine.backend, engine.precision) == (ENGINE, "tensorrt_rtx", "fp16")
    assert engine.verdict == "unproven"
    assert engine.reason
    assert ENGINE not in engine.reason  # every verb tells it beside the engine's name
    assert (after.suites, after.run_to_run, after.verdict) == (before.suites, before.run_to_run, before.verdict)
    recorded = load_bundle(once_built).artifact("parity.json")
    then = load_bundle(exported).artifact("parity.json")
    assert recorded is not None
    assert then is not None
    assert recorded.provenance.options["measured_with"] == then.provenance.tools


def test_a_second_engine_does_not_change_what_the_parity_was_measured_with(run: Run, built: Path) -> None:
    before = load_bundle(built).artifact("parity.json")
    made = run("build", built, *RTX, "--opt-batch", 2, "--json")
    assert batches(made.json["details"]["profile"]) == [1, 2, 32]
    after = load_bundle(built).artifact("parity.json")
    assert before is not None
    assert after is not None
    assert after.provenance.options["measured_with"] == before.provenance.options["measured_with"]
    assert [c.artifact for c in parity(built).comparisons].count(ENGINE) == 1


def test_an_engine_whose_report_was_not_written_is_named_the_next_time(run: Run, exported: Path, built: Path) -> None:
    """A build that was killed between the two: the engine is recorded, the report still the export's."""
    shutil.copy(exported / "parity.json", built / "parity.json")
    found, old = load_bundle(built), load_bundle(exported).artifact("parity.json")
    others = tuple(artifact for artifact in found.manifest.artifacts if artifact.path != "parity.json")
    found.save(found.manifest.model_copy(update={"artifacts": (*others, old)}))
    result = run("build", built, *RTX, "--json")
    assert result.json["reused"] is True
    assert [c.artifact for c in parity(built).comparisons][-1] == ENGINE


# Refused


def test_a_bundle_that_failed_gets_no_engine(run: Run, bundle: Path, snapshot: Snapshot) -> None:
    found = load_bundle(bundle)
    found.save(found.manifest.model_copy(update={"verdict": "failed"}))
    before = snapshot(bundle)
    result = run("build", bundle, *RTX)
    assert result.code == 9
    assert "failed" in result.err
    assert snapshot(bundle) == before


def test_a_damaged_parity_report_is_told_before_the_build(run: Run, bundle: Path, snapshot: Snapshot) -> None:
    (bundle / "parity.json").write_text("{")
    before = snapshot(bundle)
    result = run("build", bundle, *RTX)
    assert result.code == 9
    assert f"{bundle / 'parity.json'} is not the file that the manifest describes" in result.err
    assert snapshot(bundle) == before


def test_an_engine_of_which_the_manifest_says_nonsense_is_built_again_once_removed(run: Run, built: Path) -> None:
    with edited_row(built, ENGINE) as row:
        row["facts"]["runs_on"].insert(0, 1)
    result = run("build", built, *RTX)
    assert result.code == 9
    assert f"did not write the manifest's facts of {ENGINE}: runs_on.0" in result.err
    assert f"remove {ENGINE} from the bundle" in result.err
    assert run("verify", built).err.splitlines()[-2:] == result.err.splitlines()[-2:]
    (built / ENGINE).unlink()
    assert run("build", built, *RTX).code == 0


def test_a_signal_in_the_middle_of_a_build_leaves_the_old_bundle_whole(
    run: Run, built: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Signalled(ConsoleProgress):
        def update(self, detail: str) -> None:
            if detail.startswith("Building engine"):
                os.kill(os.getpid(), signal.SIGTERM)

    before = snapshot(built)
    with monkeypatch.context() as patch:
        patch.setattr("skdeploy.report.progress.ConsoleProgress", Signalled)
        result = run("build", built, *RTX, "--opt-batch", 4)
    assert result.code == 143, result.err
    assert "terminated: no file is half-written" in result.err
    assert "Traceback" not in result.err
    assert snapshot(built) == before
    assert run("build", built, *RTX, "--opt-batch", 4).code == 0  # the lock is free

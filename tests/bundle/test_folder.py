"""The bundle's folder: one writer, resume by key and digest, and nothing of the user's touched."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from skdeploy.bundle.folder import Bundle, bundle_for_writing, load_bundle
from skdeploy.bundle.station_facts import StationFacts
from skdeploy.core.errors import IntegrityError, UsageError
from tests.bundle.recorded import produced, put, recipe
from tests.refused import refused
from tests.tiny import head

Change = Callable[[Path], None]


def test_an_artifact_is_recorded_with_its_digest_as_soon_as_it_is_made(tmp_path: Path) -> None:
    with bundle_for_writing(tmp_path / "b", head()) as bundle:
        artifact = produced(bundle)
        assert load_bundle(tmp_path / "b").artifact("x.json") == artifact
    assert artifact.size_bytes == len("content")
    assert artifact.facts.dump() == {"length": 7}
    assert load_bundle(tmp_path / "b").manifest.verdict == "incomplete"


def test_an_empty_bundle_is_one_before_its_first_artifact(tmp_path: Path) -> None:
    with bundle_for_writing(tmp_path / "b", head()):
        assert load_bundle(tmp_path / "b").manifest == head()


def test_a_stage_that_fails_leaves_no_file_and_no_record(tmp_path: Path) -> None:
    def fail(path: Path) -> StationFacts:
        path.write_text("half")
        raise ZeroDivisionError

    with bundle_for_writing(tmp_path / "b", head()) as bundle, pytest.raises(ZeroDivisionError):
        bundle.produce(recipe("x.json", "json"), fail)
    assert load_bundle(tmp_path / "b").manifest.artifacts == ()
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [".lock", "manifest.json"]


def test_a_stage_is_up_to_date_while_key_and_file_are_the_same(tmp_path: Path) -> None:
    with bundle_for_writing(tmp_path / "b", head()) as bundle:
        made = produced(bundle, option="1")
    with bundle_for_writing(tmp_path / "b", head()) as bundle:
        assert bundle.up_to_date(recipe("x.json", "json", option="1")) == made
        assert bundle.up_to_date(recipe("x.json", "json", option="2")) is None
        assert bundle.up_to_date(recipe("y.json", "json", option="1")) is None


def remove(path: Path) -> None:
    path.unlink()


def alter(path: Path) -> None:
    path.write_text("CONTENT")


def link_out(path: Path) -> None:
    path.rename(path.parent.parent / "outside")
    path.symlink_to("../outside")


@pytest.mark.parametrize(
    ("change", "words"), [(remove, "is missing"), (alter, "recorded"), (link_out, "is a link that leaves the bundle")]
)
def test_a_changed_file_is_refused_by_a_reader_and_made_again_by_a_writer(
    tmp_path: Path, change: Change, words: str
) -> None:
    with bundle_for_writing(tmp_path / "b", head()) as bundle:
        made = produced(bundle)
    change(tmp_path / "b/x.json")
    reader = load_bundle(tmp_path / "b")
    with refused(IntegrityError, words):
        reader.check_all()
    with bundle_for_writing(tmp_path / "b", head()) as bundle:
        assert bundle.up_to_date(recipe("x.json", "json")) is None
        assert produced(bundle).sha256 == made.sha256
        bundle.check_all()


def test_a_damaged_engine_is_built_again_and_not_exported(tmp_path: Path) -> None:
    with bundle_for_writing(tmp_path / "b", head()) as bundle:
        produced(bundle)
        put(bundle, recipe("engines/x.engine", "engine"), b"plan")
    for name, advice in (
        ("x.json", "the same export again"),
        ("engines/x.engine", f"`skdeploy build {tmp_path / 'b'}`"),
    ):
        reader = load_bundle(tmp_path / "b")
        artifact = reader.artifact(name)
        assert artifact is not None
        alter(tmp_path / "b" / name)
        with refused(IntegrityError, advice=f"run {advice}, or restore the file"):
            reader.check(artifact)
        remove(tmp_path / "b" / name)
        with pytest.raises(IntegrityError) as missing:
            reader.check(artifact)
        assert missing.value.advice == f"run {advice} to make it anew"


@pytest.mark.parametrize(
    ("content", "words"), [(b"\xff\xfe", "it is no text: "), (None, "Is a directory$")], ids=["bytes", "folder"]
)
def test_a_manifest_that_cannot_be_read_is_told_once(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "manifest.json"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(IntegrityError) as error:
        load_bundle(tmp_path)
    assert re.search(f"cannot read {path}: {words}", error.value.message)
    assert error.value.message.count("manifest.json") == 1
    assert error.value.advice


def test_finish_removes_what_is_no_longer_part_of_the_line(tmp_path: Path) -> None:
    with bundle_for_writing(tmp_path / "b", head()) as bundle:
        first = produced(bundle)
        produced(bundle, output="y.json")
        bundle.finish((first,), "verified")
    found = load_bundle(tmp_path / "b")
    assert found.manifest.artifacts == (first,)
    assert not (tmp_path / "b/y.json").exists()
    found.check_complete()


def test_nothing_is_written_to_a_folder_that_leads_out(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    with bundle_for_writing(tmp_path / "b", head()) as bundle:
        (tmp_path / "b/engines").symlink_to("../outside")
        with refused(IntegrityError, r"engines is a link that leaves the bundle", "remove the link"):
            produced(bundle, output="engines/y.json")
    assert list((tmp_path / "outside").iterdir()) == []
    assert load_bundle(tmp_path / "b").manifest.artifacts == ()


def test_finish_does_not_follow_a_folder_that_leads_out(tmp_path: Path) -> None:
    with bundle_for_writing(tmp_path / "b", head()) as bundle:
        produced(bundle, output="engines/y.json")
        (tmp_path / "b/engines").rename(tmp_path / "outside")
        (tmp_path / "b/engines").symlink_to("../outside")
        with pytest.raises(IntegrityError, match="leaves the bundle"):
            bundle.finish((), "verified")
    assert (tmp_path / "outside/y.json").exists()


@pytest.mark.parametrize(("verdict", "words"), [("incomplete", "come to its end"), ("failed", "failed parity")])
def test_only_a_bundle_in_parity_may_be_deployed(tmp_path: Path, verdict: str, words: str) -> None:
    bundle = Bundle(tmp_path, head(verdict=verdict))
    with pytest.raises(IntegrityError, match=words):
        bundle.check_deployable()


def test_a_bundle_that_failed_parity_is_complete_and_may_be_judged(tmp_path: Path) -> None:
    Bundle(tmp_path, head(verdict="failed")).check_complete()
    with pytest.raises(IntegrityError, match="come to its end"):
        Bundle(tmp_path, head()).check_complete()


def test_a_second_writer_is_turned_away_while_the_first_is_at_work(tmp_path: Path) -> None:
    with bundle_for_writing(tmp_path / "b", head()) as bundle:
        with (
            pytest.raises(IntegrityError, match="another skdeploy is writing") as error,
            bundle_for_writing(tmp_path / "b", head()),
        ):
            pass
        produced(bundle)
    assert error.value.exit_code == 9
    assert "--output" not in error.value.advice  # not every verb that writes has it
    with bundle_for_writing(tmp_path / "b", head()) as bundle:
        bundle.check_all()


def test_a_writer_that_is_turned_away_removes_nothing_of_the_first(tmp_path: Path) -> None:
    with bundle_for_writing(tmp_path / "b", head()):
        partial = tmp_path / "b/.x.json.1.partial"
        partial.write_text("being written")
        with pytest.raises(IntegrityError), bundle_for_writing(tmp_path / "b", head()):
            pass
        assert partial.exists()


def test_what_a_killed_process_left_is_removed_in_a_bundle(tmp_path: Path) -> None:
    with bundle_for_writing(tmp_path / "b", head()) as bundle:
        produced(bundle, output="engines/x.engine")
    leftover = tmp_path / "b/engines/.x.engine.99.partial"
    leftover.write_text("half")
    with bundle_for_writing(tmp_path / "b", head()):
        assert not leftover.exists()


def test_a_folder_from_a_process_killed_before_its_manifest_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".manifest.json.99.partial").write_text("{")
    with bundle_for_writing(tmp_path, head()) as bundle:
        produced(bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "manifest.json", "x.json"]


@pytest.mark.parametrize("name", ["notes.txt", ".git", ".x.partial"])
def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="not empty and not a bundle"), bundle_for_writing(tmp_path, head()):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_head_of_the_last_export_is_the_manifests(tmp_path: Path) -> None:
    with bundle_for_writing(tmp_path, head()) as bundle:
        kept = produced(bundle)
    with bundle_for_writing(tmp_path, head(skdeploy="1")) as bundle:
        bundle.finish((kept,), "verified")
    assert load_bundle(tmp_path).manifest.skdeploy == "1"

"""The bundle's folder: one writer, resume by key and digest, and nothing of the user's touched."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from skdeploy.bundle.folder import Bundle, bundle_for_writing, load_bundle
from skdeploy.bundle.station_facts import StationFacts
from skdeploy.core.errors import IntegrityError, UsageError
from skdeploy.core.spec import Frozen
from tests.bundle.recorded import produced, put, recipe
from tests.refused import refused
from tests.tiny import head

Change = Callable[[Path], None]


class Killed(BaseException):
    """As a signal that nothing catches."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "b"


def writing(folder: Path) -> AbstractContextManager[Bundle]:
    return bundle_for_writing(folder, head())


def test_an_artifact_is_recorded_with_its_digest_as_soon_as_it_is_made(folder: Path) -> None:
    with writing(folder) as bundle:
        assert load_bundle(folder).manifest == head()
        artifact = produced(bundle)
        assert load_bundle(folder).artifact("x.json") == artifact
    assert artifact.size_bytes == len("content")
    assert artifact.facts.dump() == {"length": 7}
    assert load_bundle(folder).manifest.verdict == "incomplete"


def test_a_stage_that_fails_leaves_no_file_and_no_record(folder: Path) -> None:
    def fail(path: Path) -> StationFacts:
        path.write_text("half")
        raise ZeroDivisionError

    with writing(folder) as bundle, pytest.raises(ZeroDivisionError):
        bundle.produce(recipe("x.json", "json"), fail)
    assert load_bundle(folder).manifest.artifacts == ()
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "manifest.json"]


def refuse(after: Callable[[], object]) -> None:
    after()
    raise UsageError("refused")


@pytest.mark.parametrize("kind", ["json", "onnx"])
def test_a_new_folder_is_removed_where_the_work_is_refused_before_there_is_a_graph(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "build" / "deep" / "b"
    with pytest.raises(UsageError, match="refused"), writing(folder) as bundle:
        refuse(lambda: put(bundle, recipe("x", kind), b"content"))
    assert [path.name for path in tmp_path.iterdir()] == (["build"] if kind == "onnx" else [])
    assert folder.exists() == (kind == "onnx")


def test_a_refusal_removes_no_folder_and_no_file_of_somebody_else(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    with writing(old):
        pass
    for folder in (old, new):
        with pytest.raises(UsageError, match="refused"), writing(folder):
            refuse(lambda folder=folder: (folder / "theirs").write_text("kept"))
        assert (folder / "theirs").read_text() == "kept"
    assert (old / "manifest.json").exists()
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "died"):  # nobody refused: it can be looked into
        raise ZeroDivisionError
    assert (tmp_path / "died" / "manifest.json").exists()


def test_a_stage_is_up_to_date_while_key_and_file_are_the_same(folder: Path) -> None:
    with writing(folder) as bundle:
        made = produced(bundle, option="1")
    with writing(folder) as bundle:
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
    ("change", "words"),
    [(remove, "is missing"), (alter, "recorded"), (link_out, "is a link that leads out of the bundle")],
)
def test_a_changed_file_is_refused_by_a_reader_and_made_again_by_a_writer(
    folder: Path, change: Change, words: str
) -> None:
    with writing(folder) as bundle:
        made = produced(bundle)
    change(folder / "x.json")
    with refused(IntegrityError, words):
        load_bundle(folder).check_all()
    with writing(folder) as bundle:
        assert bundle.up_to_date(recipe("x.json", "json")) is None
        assert produced(bundle).sha256 == made.sha256
        bundle.check_all()


@pytest.mark.parametrize(
    ("name", "again"), [("x.json", "the same export again"), ("x.engine", "`skdeploy build {folder}`")]
)
def test_a_damaged_engine_is_built_again_and_not_exported(folder: Path, name: str, again: str) -> None:
    with writing(folder) as bundle:
        artifact = put(bundle, recipe(name, name.removeprefix("x.")), b"plan")
    reader = load_bundle(folder)
    alter(folder / name)
    with refused(IntegrityError, "", f"run {again.format(folder=folder)}, or restore the file"):
        reader.check(artifact)
    remove(folder / name)
    with refused(IntegrityError, "", f"run {again.format(folder=folder)} to make it again"):
        reader.check(artifact)


def test_bytes_are_checked_as_they_are_read_and_not_by_an_earlier_look(folder: Path) -> None:
    with writing(folder) as bundle:
        artifact = produced(bundle)
        assert bundle.check(artifact) == folder / "x.json"
        assert bundle.read_checked(artifact) == b"content"
        alter(folder / "x.json")
        bundle.check(artifact)  # looked at before
        with pytest.raises(IntegrityError, match="is not the file that the manifest describes"):
            bundle.read_checked(artifact)
        (folder / "x.json").unlink()
        with pytest.raises(IntegrityError, match="is missing from the bundle"):
            bundle.read_checked(artifact)


class Measured(Frozen):
    """A report."""

    error: float


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"error": "large"}', "error: Input should be a valid number"),
        ('{"error": NaN}', "NaN is not a finite number"),
        ('{"error": -Infinity}', "-Infinity is not a finite number"),
        ('{"error": 1e999}', "1e999 is not a finite number"),
        ('{"error": ' + "9" * 400 + "}", "9 is not a finite number"),
        ("[" * 3000, "Invalid JSON"),
        ("[]", "the file: "),
        ('{"error": 1, "more": 2}', "more: "),
        (b"\xff\xfe", "Invalid JSON"),
    ],
)
def test_a_report_whose_digest_agrees_is_checked_all_the_same(folder: Path, text: str | bytes, problem: str) -> None:
    with writing(folder) as bundle:
        good = put(bundle, recipe("good.json", "json"), b'{"error": 0.5}')
        assert bundle.read_report(good, Measured) == Measured(error=0.5)
        bad = put(bundle, recipe("x.json", "json"), text if isinstance(text, bytes) else text.encode())
        with refused(IntegrityError, re.escape(f"cannot read {folder / 'x.json'}: ") + f".*{re.escape(problem)}"):
            bundle.read_report(bad, Measured)


@pytest.mark.parametrize("moment", range(6))
def test_a_bundle_is_valid_whenever_the_process_that_replaces_a_file_is_killed(
    folder: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rename is a moment: killed before it or after it."""
    with writing(folder) as bundle:
        produced(bundle)
    rename, left = Path.replace, moment

    def until_killed(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        moved = rename(self, target)
        left -= 1
        if left == 0:
            raise Killed
        return moved

    bundle = load_bundle(folder)
    monkeypatch.setattr(Path, "replace", until_killed)
    with suppress(Killed):
        put(bundle, recipe("x.json", "json", parent="other"), b"something else")
    monkeypatch.undo()
    load_bundle(folder).check_all()


def test_a_record_is_not_written_through_a_link_that_leads_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    with writing(folder) as bundle:
        (folder / "evidence").symlink_to(tmp_path / "theirs")
        with pytest.raises(IntegrityError, match="is a link that leads out of the bundle"):
            bundle.write_record("evidence/accuracy.json", head())
    assert not list((tmp_path / "theirs").iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\xff\xfe", "it is not text: "), (None, "it is a folder, not a file\n")],
    ids=["bytes", "folder"],
)
def test_a_manifest_that_cannot_be_read_is_told_once(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "manifest.json"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(IntegrityError) as error:
        load_bundle(tmp_path)
    assert re.search(f"cannot read {path}: {words}", str(error.value))
    assert error.value.message.count("manifest.json") == 1


def test_finish_removes_what_is_no_longer_part_of_the_line(folder: Path) -> None:
    with writing(folder) as bundle:
        first = produced(bundle)
        produced(bundle, output="y.json")
        bundle.finish((first,), "verified")
    found = load_bundle(folder)
    assert found.manifest.artifacts == (first,)
    assert not (folder / "y.json").exists()
    found.check_complete()


def test_nothing_is_written_to_a_folder_that_leads_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    with writing(folder) as bundle:
        (folder / "engines").symlink_to("../outside")
        with refused(IntegrityError, "engines is a link that leads out of the bundle", "delete the link"):
            produced(bundle, output="engines/y.json")
    assert list((tmp_path / "outside").iterdir()) == []
    assert load_bundle(folder).manifest.artifacts == ()


def test_finish_does_not_follow_a_folder_that_leads_out(folder: Path, tmp_path: Path) -> None:
    with writing(folder) as bundle:
        produced(bundle, output="engines/y.json")
        (folder / "engines").rename(tmp_path / "outside")
        (folder / "engines").symlink_to("../outside")
        with refused(IntegrityError, "leads out of the bundle"):
            bundle.finish((), "verified")
    assert (tmp_path / "outside/y.json").exists()


def test_a_bundle_that_failed_parity_may_be_judged_and_not_deployed(tmp_path: Path) -> None:
    failed, incomplete = (Bundle(tmp_path, head(verdict=verdict)) for verdict in ("failed", "incomplete"))
    failed.check_complete()
    with refused(IntegrityError, "failed parity"):
        failed.check_deployable()
    for check in (incomplete.check_complete, incomplete.check_deployable):
        with refused(IntegrityError, "did not finish"):
            check()


def test_a_second_writer_is_turned_away_and_removes_nothing_of_the_first(folder: Path) -> None:
    with writing(folder) as bundle:
        partial = folder / ".x.json.1.partial"
        partial.write_text("being written")
        with pytest.raises(IntegrityError, match="another skdeploy is writing") as error, writing(folder):
            pass
        assert "--output" not in error.value.advice  # not every verb that writes has it
        assert partial.exists()
        produced(bundle)
    with writing(folder) as bundle:
        bundle.check_all()


def test_what_a_killed_process_left_is_removed_in_a_bundle(folder: Path) -> None:
    with writing(folder) as bundle:
        produced(bundle, output="engines/x.engine")
    leftover = folder / "engines/.x.engine.99.partial"
    leftover.write_text("half")
    with writing(folder):
        assert not leftover.exists()


def test_a_folder_from_a_process_killed_before_its_manifest_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".manifest.json.99.partial").write_text("{")
    with writing(tmp_path) as bundle:
        produced(bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "manifest.json", "x.json"]


@pytest.mark.parametrize("name", ["notes.txt", ".git", ".x.partial"])
def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with refused(UsageError, "not empty, and is not a bundle"), writing(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_head_of_the_last_export_is_the_manifests(tmp_path: Path) -> None:
    with writing(tmp_path) as bundle:
        kept = produced(bundle)
    with bundle_for_writing(tmp_path, head(skdeploy="1")) as bundle:
        bundle.finish((kept,), "verified")
    assert load_bundle(tmp_path).manifest.skdeploy == "1"


def test_what_is_not_a_bundle_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for name, why in (("", "it has no manifest.json"), ("file", "it is a file"), ("none", "there is no such folder")):
        with refused(UsageError, f"is not a bundle: {why}"):
            load_bundle(tmp_path / name)

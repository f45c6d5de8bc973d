"""What the campaign ``python -m tools.torture.places`` found: each place that ended a verb badly, in short."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

from skdeploy.core.errors import DependencyError
from tests.cli.conftest import Run

NOT_UTF8 = os.fsdecode(b"b\xfcndle\xff")


@pytest.mark.parametrize("verb", ["evaluate", "predict", "verify", "report", "bench"])
def test_a_bundle_whose_name_is_not_utf8_is_refused_by_its_name(
    verb: str, run: Run, bundle: Path, images: Path, tmp_path: Path
) -> None:
    """ONNX Runtime said that its constructor has other arguments, safetensors that the file is not whole."""
    given = {"evaluate": ["--data", images], "predict": [images]}.get(verb, [])
    result = run(verb, bundle.rename(tmp_path / NOT_UTF8), *given)
    assert result.code == 2
    assert "the name is not UTF-8" in result.err
    assert "rename it" in result.err


def test_a_bundle_is_not_made_under_a_name_that_is_not_utf8(run: Run, again: list[object], tmp_path: Path) -> None:
    result = run(*again, "--output", tmp_path / NOT_UTF8)
    assert result.code == 2
    assert "the name is not UTF-8" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("verb", "name"), [("convert", "weights.safetensors"), ("inspect", "model.onnx")])
def test_files_for_libraries_are_refused_by_their_names(
    verb: str, name: str, run: Run, bundle: Path, tmp_path: Path
) -> None:
    named = (bundle / name).rename(tmp_path / f"{NOT_UTF8}{Path(name).suffix}")
    result = run(verb, named, *(["--output", tmp_path / "made.safetensors"] if verb == "convert" else []))
    assert result.code == 2
    assert "the name is not UTF-8" in result.err


def test_images_may_have_any_name(run: Run, bundle: Path, images: Path, tmp_path: Path) -> None:
    image = shutil.copy(next(images.iterdir()), tmp_path / f"{NOT_UTF8}.png")
    assert run("predict", bundle, image).code == 0


@pytest.mark.parametrize("verb", ["doctor", "predict"])
def test_a_working_directory_that_is_gone_is_told(
    verb: str, run: Run, bundle: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Intel's MKL ended the process with code 2 and a line of its own; what resolves a path, with a traceback."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = run(verb, *([bundle, images] if verb == "predict" else []))
    assert result.code == 2
    assert "the working directory cannot be used: No such file or directory" in result.err


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_error_that_a_library_makes_of_a_signal_is_told_as_the_signal(
    sent: signal.Signals, code: int, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal while onnxruntime's native module was imported ended a run with 3: it cannot be imported here."""

    def load(folder: Path) -> None:
        try:
            os.kill(os.getpid(), sent)
            time.sleep(1)
        except KeyboardInterrupt as error:
            raise DependencyError("initialization failed") from error

    monkeypatch.setattr("skdeploy.bundle.folder.load_bundle", load)
    result = run("report", tmp_path)
    assert result.code == code
    assert "no file is half-written" in result.err
    assert "initialization failed" not in result.err


def test_no_temporary_folder_is_told_wherever_it_is_missed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended `sensitivity` with a traceback."""
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    monkeypatch.setattr("skdeploy.bundle.folder.load_bundle", lambda folder: tempfile.mkdtemp())
    result = run("report", tmp_path)
    assert result.code == 2
    assert "no temporary folder takes files" in result.err
    assert "set TMPDIR" in result.err

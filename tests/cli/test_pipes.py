"""A pipe in the place of a file is refused: to open one waits for a writer who may never come."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from skdeploy.core.errors import UsageError
from skdeploy.images.pairs import has_targets
from tests import tiny
from tests.cli.conftest import Run
from tests.refused import refused

IS_PIPE = "it is a pipe, not a file"
COMMANDS = (
    ("export x.onnx --card tiny.toml", "no ONNX file at x.onnx"),
    ("export pipe.toml", "no card at pipe.toml"),
    ("export tiny.toml --weights x.pth", "the weights x.pth are a pipe, not a file"),
    ("export tiny.toml --labels pipe", f"cannot read --labels pipe: {IS_PIPE}"),
    ("export tiny.toml --images x.png", "x.png"),
    ("export tiny.toml --images x.npz", f"cannot read x.npz: {IS_PIPE}"),
    ("export tiny.toml --images x.txt", f"cannot read the list x.txt: {IS_PIPE}"),
    ("export tiny.toml --int8 --ranges pipe", f"cannot read the ranges pipe: {IS_PIPE}"),
    ("export tiny.toml --int8 --calib pipe.toml", "pipe.toml"),
    ("evaluate bundle --data evaluation.npz --baseline pipe", f"cannot read the baseline pipe: {IS_PIPE}"),
    ("evaluate piped --data evaluation.npz", f"cannot read piped/manifest.json: {IS_PIPE}"),
    ("verify bundle --images list.txt", "list.txt names 1 of 1 images that do not exist"),
    ("verify bundle --golden x.npz", "x.npz"),
    ("predict bundle x.png", f"cannot read the image x.png: {IS_PIPE}"),
    ("inspect pipe", "pipe is neither a file nor a folder"),
    ("plan x.onnx --device t4", f"x.onnx cannot be read as ONNX: {IS_PIPE}"),
    ("convert x.pth -o out.safetensors", f"cannot read the weights x.pth: {IS_PIPE}"),
    ("triton bundle -o models", f"models/tiny/config.pbtxt cannot be read: {IS_PIPE}"),
    ("bench bundle --log-file pipe", "cannot write the log pipe: No such device or address"),
)


@pytest.fixture
def piped(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(desk, tmp_path / "desk"))
    (folder / "piped").mkdir()
    (folder / "models/tiny").mkdir(parents=True)
    pipes = ("pipe", "pipe.toml", "x.onnx", "x.pth", "x.npz", "x.txt", "x.png")
    for name in (*pipes, "piped/manifest.json", "models/tiny/config.pbtxt"):
        os.mkfifo(folder / name)
    (folder / "list.txt").write_text("x.png\n", encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def _ends() -> Iterator[None]:
    """The open that waits for ever is interrupted: the test then fails, and does not hang."""

    def late(*_: object) -> None:
        raise TimeoutError("it waits for the pipe")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("piped", "_ends")
@pytest.mark.parametrize(("command", "message"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_a_pipe_is_no_file(command: str, message: str, run: Run) -> None:
    ended = run(*shlex.split(command))
    assert ended.code in (2, 6, 9), ended.err
    assert message in ended.err, ended.err


@pytest.mark.usefixtures("_ends")
def test_a_pipe_holds_no_pairs(piped: Path) -> None:
    with refused(UsageError, f"x.npz: {IS_PIPE}"):
        has_targets(piped / "x.npz", tiny.spec())

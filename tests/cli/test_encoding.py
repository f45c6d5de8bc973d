"""Every verb prints where stdout has another encoding than UTF-8, is closed, or is on a full disk."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skdeploy.__main__ import main

C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
NAME = "zwölf-✓-😀"  # in Latin-1, in Unicode's first plane, above it


def skdeploy(
    *arguments: object, environment: dict[str, str], stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "skdeploy", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "200"} | environment
    return subprocess.run(command, env=environment, stdout=stdout, stderr=subprocess.PIPE, check=False, timeout=100)


Printed = Callable[..., tuple[int, bytes, bytes]]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Printed:
    """The exit code, stdout and stderr of a command in this process, with streams as Python opens them for an encoding."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object, encoding: str) -> tuple[int, bytes, bytes]:
        streams = [io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["skdeploy", *map(str, arguments)])
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            with pytest.raises(SystemExit) as end:
                main()
        out, err = (stream.buffer.getvalue() for stream in streams)  # type: ignore[attr-defined]  # a BytesIO, as above
        return int(end.value.code or 0), out, err

    return call


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_signs_of_ours_come_in_plain_ones(encoding: str, printed: Printed) -> None:
    code, out, err = printed("doctor", encoding=encoding)
    assert code == 0, err
    assert b"\n+  onnxruntime" in out
    assert out.isascii()


def test_signs_of_ours_come_in_plain_ones_in_the_c_locale() -> None:
    if not f"{sys.prefix}{Path(__file__)}".isascii():
        pytest.skip("in such a folder, CPython itself does not start in an environment with a .pth file under LC_ALL=C")
    done = skdeploy("doctor", environment=C)
    assert done.returncode == 0, done.stderr
    assert b"\n+  onnxruntime" in done.stdout
    assert done.stdout.isascii()


@pytest.fixture
def named(bundle: Path) -> Path:
    return bundle.rename(bundle.with_name(NAME))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])  # with C, Python does not know what signs a path has
def test_names_come_escaped_and_json_stays_the_same(encoding: str, named: Path, printed: Printed) -> None:
    code, out, err = printed("inspect", named, encoding=encoding)
    assert code == 0, err
    umlaut = b"\xf6" if encoding == "latin-1" else b"\\u00f6"
    assert b"zw" + umlaut + b"lf-+-\\ud83d\\ude00" in out
    image = named / "gone.png"
    code, out, err = printed("predict", named, image, "--json", encoding=encoding)
    assert code == 2
    content = json.loads(out.decode("latin-1"))
    assert str(image) in content["error"]["message"]
    assert b"Traceback" not in err


def test_labels_in_json_are_the_same_in_every_encoding(bundle: Path, images: Path, printed: Printed) -> None:
    """pydantic writes JSON with its signs as they are: what stdout lacks is escaped there too."""
    image = images.joinpath("0.png").read_bytes()
    bundle.with_name(f"{NAME}.png").write_bytes(image)
    code, out, err = printed("predict", bundle, bundle.with_name(f"{NAME}.png"), "--json", encoding="ascii")
    assert code == 0, err
    assert json.loads(out.decode("ascii"))["images"][0]["image"].endswith(f"{NAME}.png")


def test_a_closed_stdout_is_no_bug(exported: Path) -> None:
    command = f"exec {shlex.quote(sys.executable)} -m skdeploy inspect {shlex.quote(str(exported))} >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("verb", ["inspect", "--version"])
def test_a_full_disk_under_stdout_is_told(verb: str, exported: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = skdeploy(verb, *([exported] if verb == "inspect" else []), environment={}, stdout=full)
    finally:
        os.close(full)
    assert done.stderr == b"error: no space left to write the output: No space left on device\n"
    assert done.returncode == 9

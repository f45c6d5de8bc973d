"""Every verb prints where stdout has another encoding than UTF-8, is closed, or is on a full disk."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
NAME = "zwölf-✓-😀"  # in Latin-1, in Unicode's first plane, above it


def skdeploy(
    *arguments: object, encoding: str = "ascii", stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"COLUMNS": "200"} | ENCODINGS[encoding]
    command = [sys.executable, "-m", "skdeploy", *map(str, arguments)]
    return subprocess.run(command, env=environment, stdout=stdout, stderr=subprocess.PIPE, check=False, timeout=100)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_signs_of_ours_come_in_plain_ones(encoding: str) -> None:
    if encoding == "C" and not f"{sys.prefix}{Path(__file__)}".isascii():
        pytest.skip("in such a folder, CPython itself does not start in an environment with a .pth file under LC_ALL=C")
    done = skdeploy("doctor", encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert b"\n+  onnxruntime" in done.stdout
    assert done.stdout.isascii()


@pytest.fixture
def named(bundle: Path) -> Path:
    return bundle.rename(bundle.with_name(NAME))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])  # with C, Python does not know what signs a path has
def test_names_come_escaped_and_json_stays_the_same(encoding: str, named: Path) -> None:
    shown = skdeploy("inspect", named, encoding=encoding)
    assert shown.returncode == 0, shown.stderr
    umlaut = b"\xf6" if encoding == "latin-1" else b"\\u00f6"
    assert b"zw" + umlaut + b"lf-+-\\ud83d\\ude00" in shown.stdout
    image = named / "gone.png"
    found = skdeploy("predict", named, image, "--json", encoding=encoding)
    assert found.returncode == 2
    content = json.loads(found.stdout.decode("latin-1"))
    assert str(image) in content["error"]["message"]
    assert b"Traceback" not in found.stderr


def test_labels_in_json_are_the_same_in_every_encoding(bundle: Path, images: Path) -> None:
    """pydantic writes JSON with its signs as they are: what stdout lacks is escaped there too."""
    image = images.joinpath("0.png").read_bytes()
    bundle.with_name(f"{NAME}.png").write_bytes(image)
    found = skdeploy("predict", bundle, bundle.with_name(f"{NAME}.png"), "--json")
    assert found.returncode == 0, found.stderr
    assert found.stdout.isascii()
    assert json.loads(found.stdout)["images"][0]["image"].endswith(f"{NAME}.png")


def test_a_closed_stdout_is_no_bug() -> None:
    command = f"exec {shlex.quote(sys.executable)} -m skdeploy doctor >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("verb", [("doctor",), ("--version",)])
def test_a_full_disk_under_stdout_is_told(verb: tuple[str, ...]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = skdeploy(*verb, stdout=full)
    finally:
        os.close(full)
    assert done.stderr == b"error: no space left to write the output: No space left on device\n"
    assert done.returncode == 9

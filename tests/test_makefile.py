"""``make env`` names what is missing, shows that it works, and does not take half an environment for a whole one; what ``make
demo`` tells a newcomer to type works."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_commands import parse

ROOT = Path(__file__).parents[1]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
# Debian without python3-venv: the environment's Python is there, its pip is not, and the exit code is 1.
WITHOUT_ENSUREPIP = f"""#!/bin/sh
case "$*" in *venv*) {shlex.quote(sys.executable)} "$@" --without-pip; exit 1;; esac
exec {shlex.quote(sys.executable)} "$@"
"""


# An environment whose pip downloads, unpacks for a while, and ends as it is told.
SLOW_PIP = """#!/bin/sh
case "$*" in
  *"pip install"*)
    echo "Collecting torch==2.13.0"
    echo "  Downloading torch-2.13.0.whl (190.4 MB)"
    echo "Installing collected packages: torch, onnx"
    sleep 2.3
    [ "$CODE" = 0 ] || echo "no space left" >&2
    exit "$CODE";;
esac
"""


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make as from a shell: a make that runs these tests passes its own flags on."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "with a space and ü"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


@needs_make
def test_python_without_venv_is_named_at_every_try(checkout: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(WITHOUT_ENSUREPIP)
    python.chmod(0o755)
    for _ in range(2):
        done = make(checkout, "env", f"PYTHON={python}")
        assert done.returncode == 2
        assert "apt-get install python3-venv" in done.stdout, done.stderr
        assert (checkout / ".venv/bin/python").exists()  # half of an environment
        assert not (checkout / ".venv/.installed").exists()


@needs_make
@pytest.mark.parametrize("code", [0, 1])
def test_an_installation_shows_that_it_works_and_how_it_ends(checkout: Path, code: int) -> None:
    python = checkout / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(SLOW_PIP)
    python.chmod(0o755)
    done = make(checkout, "env", "EVERY=1", CODE=str(code))
    assert "about 2 GB" in done.stdout
    assert "Downloading torch-2.13.0.whl (190.4 MB)" in done.stdout
    assert len(re.findall(r"\.venv has \d+ MB", done.stdout)) == 2
    assert "Collecting" not in done.stdout
    assert (done.returncode == 0) == (checkout / ".venv/.installed").exists() == (code == 0)
    assert ("pip could not install" in done.stdout) == (code == 1)
    assert ("no space left" in done.stderr) == (code == 1)


@needs_make
def test_the_demo_ends_with_commands_that_exist() -> None:
    said = make(ROOT, "--dry-run", "demo").stdout
    _, _, tail = said.partition("Next, type:")
    commands = re.findall(r'"  (skdeploy [^"]+)"', tail)
    assert len(commands) == 3
    for command in commands:
        parse(command)
        for path in re.findall(r"calibration/\S+", command):
            assert (ROOT / path).exists()
    assert ". .venv/bin/activate" in tail

"""``make env`` names what is missing, and does not take half an environment for a whole one."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Debian without python3-venv: the environment's Python is there, its pip is not, and the exit code is 1.
WITHOUT_ENSUREPIP = f"""#!/bin/sh
case "$*" in *venv*) {shlex.quote(sys.executable)} "$@" --without-pip; exit 1;; esac
exec {shlex.quote(sys.executable)} "$@"
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_python_without_venv_is_named_at_every_try(tmp_path: Path) -> None:
    folder = tmp_path / "with a space and ü"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    python = tmp_path / "python"
    python.write_text(WITHOUT_ENSUREPIP)
    python.chmod(0o755)
    # as from a shell: a make that runs these tests passes its own flags on
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    for _ in range(2):
        command = ["make", "env", f"PYTHON={python}"]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 2
        assert "apt-get install python3-venv" in done.stdout, done.stderr
        assert (folder / ".venv/bin/python").exists()  # half of an environment
        assert not (folder / ".venv/.installed").exists()

"""All code around kernels, run behind the real ``cuda-bindings`` with the driver of ``stand_in.c`` in the driver's place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends.stand_in import VERSION

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
FILES = ("tests/backends/stand_in_memory.py", "tests/backends/stand_in_session.py")


@pytest.mark.parametrize("version", [12060, 13000], ids=["JetPack 6", "CUDA 13"])
def test_everything_around_kernels_runs_on_a_driver_in_host_memory(version: int, tmp_path: Path) -> None:
    """A process of its own, in which ``libcuda.so.1`` is the stand-in: its tests are in two files, which say what they hold."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed: the stand-in of the driver cannot be compiled")
    pytest.importorskip("cuda.bindings.driver", reason="needs skdeploy[plans]")
    library = tmp_path / "libcuda.so.1"
    options = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-DDRIVER_VERSION={version}"]
    command = [compiler, *options, f"-Wl,-soname,{library.name}", "-o", library, FOLDER / "stand_in.c", "-ldl"]
    subprocess.run(command, check=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    paths = [str(tmp_path), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", *FILES],
        cwd=ROOT,
        env={**environment, "LD_LIBRARY_PATH": os.pathsep.join(paths), VERSION: str(version)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout
    assert " skipped" not in ran.stdout

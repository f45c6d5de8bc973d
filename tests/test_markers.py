"""Which tests run on this machine is decided by their markers, never in silence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MARKED = """
import pytest

@pytest.mark.gpu
def test_on_a_gpu(): ...

@pytest.mark.slow
def test_for_long(): ...

def test_always(): ...
"""


def run(folder: Path, content: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs one test module under this project's configuration and conftest, with every GPU hidden."""
    for file in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / file, folder)
    (folder / "test_marked.py").write_text(content, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, "test_marked.py"],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_gpu_test_is_skipped_with_the_reason_where_there_is_none(tmp_path: Path) -> None:
    done = run(tmp_path, MARKED)
    assert done.returncode == 0
    assert "no CUDA device on this machine" in done.stdout
    assert "1 passed, 2 skipped" in done.stdout


def test_a_gpu_test_is_skipped_with_the_reason_of_a_backend_that_does_not_work(tmp_path: Path) -> None:
    """Here the package is made unimportable, on a machine that says it has a GPU."""
    content = """
import sys
import pytest
from skdeploy.devices import cuda

cuda.devices = lambda: (cuda.CudaDevice(0, "NVIDIA L4", "8.9", 1),)
sys.modules["tensorrt"] = None

@pytest.mark.gpu("tensorrt")
def test_with_tensorrt(): raise AssertionError

@pytest.mark.gpu
def test_on_a_gpu(): ...
"""
    done = run(tmp_path, content)
    assert "1 passed, 1 skipped" in done.stdout
    assert "tensorrt: tensorrt cannot be imported" in done.stdout


def test_slow_tests_run_when_asked_for(tmp_path: Path) -> None:
    assert "2 passed, 1 skipped" in run(tmp_path, MARKED, "--slow").stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import pytest\n@pytest.mark.gpus\ndef test_typo(): ...\n", "'gpus' not found in `markers`"),
        ("import warnings\ndef test_warns(): warnings.warn('spoken')\n", "UserWarning: spoken"),
    ],
    ids=["unknown marker", "warning"],
)
def test_an_unknown_marker_or_a_warning_fails(tmp_path: Path, content: str, message: str) -> None:
    done = run(tmp_path, content)
    assert done.returncode != 0
    assert message in done.stdout

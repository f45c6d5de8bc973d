"""The floors that ``pyproject.toml`` gives to the folders, and that ``make lint`` checks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint(checkout: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    return subprocess.run(
        [*command, "--no-cache"], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The package and its contract, to be broken."""
    shutil.copytree(ROOT / "skdeploy", tmp_path / "skdeploy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "line", "words"),
    [
        (
            "images/feeds.py",
            "def later():\n    from skdeploy.line.export import export\n",
            "skdeploy.images is not allowed",
        ),
        (
            "core/progress.py",
            "if False:\n    import skdeploy.cli\n",
            "skdeploy.core is not allowed to import skdeploy.cli",
        ),
        ("devices/cuda.py", "import skdeploy.zoo.cards\n", "skdeploy.devices is not allowed to import skdeploy.zoo"),
        ("cellar/__init__.py", "", "cellar"),
    ],
    ids=["lazily", "never run", "beside", "a folder without a floor"],
)
def test_an_import_that_climbs_and_a_folder_without_a_floor_are_reported(
    checkout: Path, module: str, line: str, words: str
) -> None:
    path = checkout / "skdeploy" / module
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + line)
    done = lint(checkout)
    assert done.returncode == 1
    assert words in done.stdout


def test_nothing_lies_loose_at_the_top() -> None:
    assert {path.name for path in (ROOT / "skdeploy").iterdir() if path.is_file()} == {
        "__init__.py",
        "__main__.py",
        "py.typed",
    }

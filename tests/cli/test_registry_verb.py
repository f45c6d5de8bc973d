"""A verb that is registered from outside the package is a verb like the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.outside.toy_verb import HELP

pytestmark = pytest.mark.usefixtures("outside")


def test_the_help_lists_it(run: Run) -> None:
    assert HELP in run("--help").out
    assert "--at-least" in run("list-sizes", "--help").out


def test_it_runs_and_its_errors_have_exit_codes(run: Run, exported: Path, tmp_path: Path) -> None:
    result = run("list-sizes", exported, "--at-least", 1)
    assert result.code == 0, result.err
    sizes = {name: int(size) for name, size in (line.split() for line in result.out.splitlines())}
    assert sizes["model.onnx"] == (exported / "model.onnx").stat().st_size
    assert run("list-sizes", exported, "--at-least", max(sizes.values()) + 1).out == ""
    result = run("list-sizes", tmp_path)
    assert result.code == 2
    assert "is not a bundle" in result.err
    assert run("list-sizes").code == 2

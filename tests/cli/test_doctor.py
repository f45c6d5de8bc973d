"""``skdeploy doctor`` tells the truth about this machine, and finds what is broken."""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime
import pytest

import skdeploy
from skdeploy.backends import BACKENDS
from skdeploy.core.packages import install_command
from skdeploy.devices import cuda
from tests.cli.conftest import Run


def test_json_holds_every_backend_with_a_version_or_a_reason(run: Run) -> None:
    result = run("doctor", "--json")
    assert result.code == 0
    content = result.json
    assert content["skdeploy"] == skdeploy.__version__
    assert content["problems"] == []
    parts = {part["name"]: part for part in content["parts"]}
    assert set(BACKENDS) <= set(parts)
    assert parts["torch"]["available"]
    assert parts["onnxruntime"]["version"] == onnxruntime.__version__
    for part in parts.values():
        assert part["version"] if part["available"] else part["reason"]


def test_a_missing_runtime_is_a_problem_with_its_cure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = run("doctor", "--json")
    assert result.code == 3
    (problem,) = result.json["problems"]
    assert "onnxruntime does not work" in problem
    assert install_command("cpu") in problem


def test_both_builds_of_onnxruntime_side_by_side_are_a_problem(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "onnxruntime_gpu-1.22.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.22.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    result = run("doctor")
    assert result.code == 3
    assert "onnxruntime-gpu 1.22.0" in result.out
    assert "overwrite each other's files" in result.out
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in result.out


def test_without_a_gpu_nothing_is_to_be_installed_for_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "devices", tuple)
    monkeypatch.setattr(cuda, "driver_problem", lambda: "no NVIDIA driver")
    result = run("doctor")
    assert result.code == 0
    assert result.out.count("needs an NVIDIA GPU: no NVIDIA driver") == 1
    assert "onnxruntime-gpu" not in result.out

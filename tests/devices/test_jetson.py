"""A Jetson is told by its files, and a build there leaves memory to the rest of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from skdeploy.devices import jetson
from skdeploy.engines._configure import tactic_memory

# Of a Jetson AGX Orin with JetPack 6.
COMPATIBLE = b"nvidia,p3737-0000+p3701-0005\x00nvidia,p3701-0005\x00nvidia,tegra234\x00"
FREE = 60_000_000 * 1024


@pytest.fixture
def orin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(jetson, "available_bytes", lambda: FREE)
    for name, content in {"RELEASE": b"", "DEVICE_TREE": COMPATIBLE}.items():
        path = tmp_path / name
        if content:
            path.write_bytes(content)
        monkeypatch.setattr(jetson, name, path)
    return tmp_path


def test_this_machine_is_no_jetson_and_keeps_the_compilers_limits() -> None:
    assert not jetson.is_jetson()
    assert jetson.memory_limits(None, None) == (None, None)
    assert jetson.memory_limits(1, 2) == (1, 2)


def test_a_jetson_is_told_by_its_device_tree_or_by_jetpacks_file(orin: Path) -> None:
    assert jetson.is_jetson()
    (orin / "DEVICE_TREE").write_bytes(b"raspberrypi,4-model-b\x00brcm,bcm2711\x00")
    assert not jetson.is_jetson()
    (orin / "DEVICE_TREE").unlink()
    assert not jetson.is_jetson()
    (orin / "RELEASE").write_text("# R36 (release), REVISION: 4.0")
    assert jetson.is_jetson()


@pytest.mark.usefixtures("orin")
def test_limits_on_a_jetson_leave_a_quarter_of_what_is_free() -> None:
    workspace, tactic = jetson.memory_limits(None, None)
    assert workspace is not None
    assert tactic is not None
    assert FREE / 4 - (1 << 20) < workspace <= FREE / 4
    assert FREE / 2 - (1 << 20) < tactic <= FREE / 2
    assert jetson.memory_limits(5 << 30, None) == (5 << 30, tactic)
    assert jetson.memory_limits(None, 6 << 30) == (workspace, 6 << 30)


def test_tactic_memory_is_a_power_of_two() -> None:
    """TensorRT keeps its old limit, with an error in its log only, for any other: see test_configure.py."""
    assert [tactic_memory(count) for count in (1, 2, 3, 1023, 1024, 1025)] == [1, 2, 2, 512, 1024, 1024]

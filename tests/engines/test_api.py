"""The Protocols say what TensorRT has; a release that renames or changes any of it fails here, by name."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from skdeploy.engines import _api
from tests.engines import protocols
from tests.wheels import stub_libraries, unpacked

# Of JetPack 6, of JetPack 7.1, the last 10.x, and the newest: docs/reference/engines.md.
RELEASES = {"cu12": ("10.3.0", "10.13.3.9.post1"), "cu13": ("10.16.1.11", "11.4.0.106")}
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_the_installed_module_is_what_the_protocols_say(name: str) -> None:
    trt = pytest.importorskip(name)
    assert protocols.problems(trt, rtx=name == "tensorrt_rtx") == []


@pytest.mark.parametrize(("cuda", "version"), [(cuda, version) for cuda, each in RELEASES.items() for version in each])
def test_a_release_is_what_the_protocols_say(cuda: str, version: str) -> None:
    """The real bindings, from the package index, over libraries that answer null."""
    folder = unpacked(f"tensorrt_{cuda}_bindings=={version}")
    libraries = stub_libraries(folder / "tensorrt_bindings" / "tensorrt.so", folder.with_name(f"{folder.name}.stubs"))
    (folder / "tensorrt_libs").mkdir(exist_ok=True)  # the bindings import it, to have their libraries loaded
    (folder / "tensorrt_libs" / "__init__.py").touch()
    command = [sys.executable, protocols.__file__, folder, *libraries]
    ran = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["problems"] == []
    assert found["version"].split(".")[:2] == version.split(".")[:2]


def test_every_protocol_is_looked_at() -> None:
    assert protocols.members(_api.ExecutionContext) >= {"execute_async_v3", "set_tensor_address"}
    assert protocols.members(_api.BuilderConfig) >= protocols.ONLY_RTX | {"progress_monitor"}
    modules = {_api.Compiler, _api.Refits, _api.TargetsCapabilities, _api.ValidatesPlans}
    assert {*protocols.CLASSES, *modules, _api.Enumerated, _api.Enumeration} == {
        found for found in vars(_api).values() if inspect.isclass(found) and found.__module__ == _api.__name__
    }


# That a difference is found


class Layer:
    """ILayer with faults, as pybind11 would show them."""

    name = property(lambda self: "")  # as it is
    type = property(lambda self: "", doc="Deprecated in TensorRT 12.0")

    def metadata(self) -> str:
        return ""

    num_inputs = num_outputs = property(lambda self: 1)

    def get_input(self, index: int) -> None:
        """get_input(self: ILayer, index: str) -> ITensor"""


class Network:
    error_recorder = property(lambda self: None)
    num_inputs = num_outputs = num_layers = property(lambda self: 1)

    def get_input(self, index: int) -> None:
        """get_input(self: INetworkDefinition, index: int, more: int) -> ITensor"""

    def get_output(self, index: int) -> None:
        """get_output(self: INetworkDefinition, index: int, more: int = 0) -> ITensor"""

    def get_layer(self, index: int) -> None:
        """get_layer(self: INetworkDefinition, index: int) -> ITensor"""


def test_each_kind_of_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = {_api.Layer: "ILayer", _api.Network: "INetworkDefinition", _api.Tensor: "ITensor"}
    monkeypatch.setattr(protocols, "CLASSES", classes)
    trt: Any = SimpleNamespace(ILayer=Layer, INetworkDefinition=Network, ITensor=type("ITensor", (), {}))
    found = [one.partition(" is none of")[0] for one in protocols._classes(trt, rtx=False)]
    assert [one for one in found if not one.startswith("ITensor.")] == [
        "ILayer.get_input(int) -> Tensor",
        "ILayer.get_output is absent",
        "ILayer.metadata is a function, and not a property",
        "ILayer.type: Deprecated in TensorRT 12.0",
        "INetworkDefinition.error_recorder cannot be set",
        "INetworkDefinition.get_input(int) -> Tensor",
        "INetworkDefinition.get_layer(int) -> Layer",
    ]

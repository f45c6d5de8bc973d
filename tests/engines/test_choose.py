"""Which compiler a target means, on machines of every kind; the machine is what the driver and the packages say."""

from __future__ import annotations

import importlib
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skdeploy import engines
from skdeploy.core.errors import DependencyError, UsageError
from skdeploy.core.packages import install_command
from skdeploy.devices import cuda
from skdeploy.engines import tensorrt, tensorrt_rtx
from skdeploy.engines.options import BuildOptions

GPU = cuda.CudaDevice(0, "NVIDIA L4", "8.9", 24 << 30)
VERSIONS = {"tensorrt": "11.4.0.106", "tensorrt_rtx": "1.7.1.116"}


class Machine:
    """A machine with these packages and GPUs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.has()

    def has(
        self,
        *packages: str,
        gpus: tuple[cuda.CudaDevice, ...] = (),
        machine: str = "x86_64",
        tensorrt: str = "11.4.0.106",
    ) -> None:
        versions = {**VERSIONS, "tensorrt": tensorrt}
        self._monkeypatch.setattr(engines, "installed", lambda name: name in packages)
        self._monkeypatch.setattr(engines, "version", lambda name: versions[name])
        self._monkeypatch.setattr(cuda, "devices", lambda: gpus)
        self._monkeypatch.setattr(cuda, "driver_problem", lambda: "" if gpus else "no NVIDIA driver: not found")
        self._monkeypatch.setattr(platform, "machine", lambda: machine)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


BOTH = ("tensorrt", "tensorrt_rtx")


@pytest.mark.parametrize(
    ("packages", "on", "chosen", "reasons"),
    [
        (BOTH, {"gpus": (GPU,)}, "tensorrt", ["TensorRT 11.4.0.106 builds for NVIDIA L4"]),
        (BOTH, {}, "tensorrt_rtx", ["ahead of time", "not TensorRT: no NVIDIA driver"]),
        (BOTH, {"gpus": (GPU,), "tensorrt": "8.6.1"}, "tensorrt_rtx", ["8.6.1 is older than 10"]),
        ((), {"gpus": (GPU,)}, None, ["tensorrt is not installed", "tensorrt_rtx is not installed"]),
        (("tensorrt_rtx",), {"machine": "aarch64"}, None, ["x86-64 only, but this is aarch64"]),
    ],
    ids=["GPU", "no GPU", "old TensorRT", "nothing installed", "ARM without a GPU"],
)
def test_auto_is_the_first_that_builds_here(
    packages: tuple[str, ...], on: dict[str, Any], chosen: str | None, reasons: list[str], machine: Machine
) -> None:
    machine.has(*packages, **on)
    name, reason = engines.choose("auto")
    assert name == chosen
    assert all(words in reason for words in reasons)


def test_onnx_is_no_engine(machine: Machine) -> None:
    machine.has(*BOTH, gpus=(GPU,))
    assert engines.choose("onnx")[0] is None


@pytest.mark.parametrize(("target", "extra"), [("tensorrt", "tensorrt"), ("tensorrt_rtx", "rtx")])
def test_explicit_target_is_taken_and_absent_an_error(target: str, extra: str, machine: Machine) -> None:
    with pytest.raises(DependencyError, match="not installed") as refusal:
        engines.choose(target)
    assert install_command(extra) in refusal.value.advice
    machine.has(target, gpus=(GPU,))
    assert engines.choose(target)[0] == target


def test_tensorrt_without_a_gpu_is_an_error(machine: Machine, tmp_path: Path) -> None:
    machine.has("tensorrt")
    with pytest.raises(DependencyError, match="no NVIDIA driver") as refusal:
        engines.build("tensorrt", tmp_path / "x", tmp_path / "y", BuildOptions(), lambda phase, fraction: None)
    assert "tensorrt_rtx" in refusal.value.advice


def test_unknown_compiler_is_a_usage_error() -> None:
    for call in (engines.compiler, engines.version, engines.obstacle, engines.load):
        with pytest.raises(UsageError, match="there is no compiler 'nvcc'"):
            call("nvcc")


# The real machine


def test_choosing_is_fast_and_imports_nothing_heavy() -> None:
    """50 ms is what a command can spend unnoticed; the first call is measured, in a process of its own."""
    script = (
        "import sys, time\n"
        "from skdeploy import engines\n"
        "started = time.perf_counter()\n"
        "engines.choose('auto')\n"
        "print(time.perf_counter() - started)\n"
        "print(sorted({'torch', 'onnx', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)))\n"
    )
    fastest = float("inf")
    for _ in range(3):  # the machine may be busy with something else
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        seconds, heavy = run.stdout.splitlines()
        assert heavy == "[]"
        fastest = min(fastest, float(seconds))
    assert fastest < 0.05 or cuda.devices()  # with a GPU, the driver's own start takes longer


@pytest.mark.parametrize("module", [tensorrt, tensorrt_rtx])
def test_probe_of_a_missing_module_tells_what_to_install(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module.NAME  # type: ignore[attr-defined]  # every compiler has one
    monkeypatch.setitem(sys.modules, name, None)
    answer = engines.probe(name)
    assert not answer.available
    assert "not installed" in answer.reason
    assert install_command(engines.compiler(name).EXTRA) in answer.install


@pytest.mark.parametrize(("capability", "said"), [("7.5", "T4 (no BF16)"), ("8.7", "T4")])
def test_a_probe_names_the_precisions_that_a_gpu_does_not_have(
    capability: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BF16 is there from compute capability 8.0 on."""
    pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")
    monkeypatch.setattr(cuda, "devices", lambda: (replace(GPU, name="T4", compute_capability=capability),))
    assert engines.probe("tensorrt_rtx").device == said


def test_probe_of_rtx_works_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")
    monkeypatch.setattr(cuda, "devices", lambda: ())
    answer = engines.probe("tensorrt_rtx")
    assert answer.available
    assert answer.version == engines.version("tensorrt_rtx")
    assert "ahead of time" in answer.device


@pytest.fixture
def fake_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder ``tensorrt`` that is found before any installed one, and no metadata about it."""
    known = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "tensorrt"}
    for name in known:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tensorrt, "DISTRIBUTIONS", ())
    folder = tmp_path / "tensorrt"
    folder.mkdir()
    yield folder
    sys.modules.pop("tensorrt", None)
    importlib.invalidate_caches()


def test_type_stubs_are_not_the_package(fake_package: Path) -> None:
    (fake_package / "__init__.pyi").touch()
    assert not engines.installed("tensorrt")


def test_version_of_a_package_without_metadata_is_its_own(fake_package: Path) -> None:
    (fake_package / "__init__.py").write_text("__version__ = '10.3.0'\n")
    assert engines.installed("tensorrt")
    assert engines.version("tensorrt") == "10.3.0"


@pytest.mark.parametrize(
    "raised", ["OSError('libnvinfer.so.10: cannot open')", "RuntimeError('broken')", "ImportError('no')"]
)
def test_probe_of_a_broken_package_tells_the_reason(
    raised: str, fake_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fake_package / "__init__.py").write_text(f"raise {raised}\n")
    monkeypatch.setattr(engines, "version", lambda name: "10.3.0")
    monkeypatch.setattr(cuda, "devices", lambda: (GPU,))
    answer = engines.probe("tensorrt")
    assert not answer.available
    assert raised.split("'")[1] in answer.reason
    assert install_command("tensorrt") in answer.install


def test_native_libraries_that_are_missing_are_a_dependency_error(fake_package: Path) -> None:
    (fake_package / "__init__.py").write_text("raise OSError('libnvinfer.so.10: cannot open')\n")
    with pytest.raises(DependencyError, match=r"native libraries do not load.*libnvinfer"):
        engines.load("tensorrt")

"""Every reason for which a plan does not run, without a GPU; the header is that of plans which TensorRT-RTX builds here."""

from __future__ import annotations

import platform
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from skdeploy import engines
from skdeploy.core.errors import DependencyError, EngineError
from skdeploy.devices import cuda
from skdeploy.engines import compatibility
from skdeploy.engines.compatibility import (
    BuiltFor,
    Here,
    PlanHeader,
    built_for,
    here,
    obstacles,
    read_header,
    require_compatible,
)
from skdeploy.engines.options import BatchProfile, BuildOptions, HardwareCompatible

PATH = Path("x.engine")
PROFILE = BatchProfile(1, 1, 1)
ADA = Here(
    system="Linux",
    machine="x86_64",
    gpu="NVIDIA RTX 4090",
    compute_capability="8.9",
    driver="13.0",
    installed="10.13.2.6",
    needs_cuda=13,
)
BUILT = BuiltFor(
    compiler="tensorrt",
    version="10.13.2.6",
    system="Linux",
    machine="x86_64",
    gpu="NVIDIA RTX 4090",
    compute_capabilities=("8.9",),
    driver="13.0",
)
HEADER = PlanHeader("tensorrt", "10.13.2.6")
RTX_HEADER = PlanHeader("tensorrt_rtx", "1.7.1.116", ("8.0", "8.6", "8.9"))
RTX_HERE = replace(ADA, installed="1.7.1.116")


def reasons(built: BuiltFor | None, header: PlanHeader, at: Here, name: str = "tensorrt") -> list[str]:
    return [obstacle.reason for obstacle in obstacles(name, built, header, at)]


def tensorrt_plan(version: tuple[int, int, int, int], serialization: int = 0) -> bytes:
    """As trtexec reads one: tag, serialization version, and the version at byte 24."""
    return b"ftrt" + struct.pack("<I16x4B", serialization, *version) + bytes(100)


@pytest.fixture(scope="session")
def rtx_plans(fp16: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], bytes]:
    """Real plans by the compute capabilities that they were built for; none is the default."""
    pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")
    plan = tmp_path_factory.mktemp("plans") / "x.engine"
    found = {}
    for capabilities in ((), ("7.5",), ("8.0",), ("8.6",), ("8.9", "12.0"), ("12.1",)):
        options = BuildOptions(PROFILE, compute_capabilities=capabilities)
        engines.build("tensorrt_rtx", fp16, plan, options, lambda _phase, _fraction: None)
        found[capabilities] = plan.read_bytes()
    return found


# The header


def test_header_of_a_real_plan_has_its_version_and_the_capabilities_it_was_built_for(
    rtx_plans: dict[tuple[str, ...], bytes],
) -> None:
    version = engines.version("tensorrt_rtx")
    for capabilities, plan in rtx_plans.items():
        assert read_header(PATH, plan) == PlanHeader(
            "tensorrt_rtx", version, capabilities or ("8.0", "8.6", "8.9", "12.0", "12.1")
        )


@pytest.mark.parametrize("part", [0.5, 0.001], ids=["half", "a thousandth"])
def test_a_real_plan_that_is_cut_is_found_by_its_length(
    rtx_plans: dict[tuple[str, ...], bytes], part: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = rtx_plans[()]
    monkeypatch.setattr(engines, "load", lambda name: pytest.fail(f"{name} imported"))
    cut = plan[: int(len(plan) * part)]
    with pytest.raises(EngineError, match=f"cut off: {len(cut)} bytes, but its header says {len(plan)}"):
        require_compatible("tensorrt_rtx", PATH, cut, None)


def test_bytes_behind_the_end_are_no_plan_of_ours(rtx_plans: dict[tuple[str, ...], bytes]) -> None:
    with pytest.raises(EngineError, match="has extra bytes at its end"):
        read_header(PATH, rtx_plans[()] + b"\0")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\x08\x0a\x12\x07pytorch", "is not a plan"),
        (b"PK\x03\x04 an archive", "is not a plan"),
        (b"ftrt\0\0\0", "cut off: 7 bytes are less"),
        (b"vtrt" + bytes(30), "cut off: 34 bytes are less"),
    ],
)
def test_what_is_no_whole_plan_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(EngineError, match=words) as refusal:
        require_compatible("tensorrt", PATH, content, None)
    assert refusal.value.exit_code == 7


def test_header_of_tensorrt_has_its_version_and_of_an_unknown_serialization_only_the_tag_is_believed() -> None:
    assert read_header(PATH, tensorrt_plan((10, 13, 2, 6))) == HEADER
    assert read_header(PATH, tensorrt_plan((10, 13, 2, 6), serialization=1)) == PlanHeader("tensorrt")


# What stands against a plan


def test_a_plan_of_this_machine_runs() -> None:
    assert reasons(BUILT, HEADER, ADA) == []
    assert reasons(None, HEADER, ADA) == []
    assert reasons(None, RTX_HEADER, RTX_HERE, "tensorrt_rtx") == []


TENSORRT_GPU = "for compute capability 8.9 \\(NVIDIA RTX 4090\\), but NVIDIA T4 has 7.5"
NONE = {"gpu": "", "compute_capability": ""}
# What the header says where it is not HEADER, what is here where it is not ADA, and the reason.
CASES: dict[str, tuple[PlanHeader, dict[str, str], str]] = {
    "another version": (HEADER, {"installed": "10.14.1.1"}, "built with TensorRT 10.13.2.6, but 10.14.1.1"),
    "another version, known from the manifest alone": (
        PlanHeader("tensorrt"),
        {"installed": "11.0.0.1"},
        "built with TensorRT 10.13.2.6",
    ),
    "another GPU": (HEADER, {"gpu": "NVIDIA T4", "compute_capability": "7.5"}, TENSORRT_GPU),
    "another processor": (HEADER, {"machine": "aarch64"}, "on Linux x86_64, but this is Linux aarch64"),
    "another system": (HEADER, {"system": "Windows"}, "on Linux x86_64, but this is Windows x86_64"),
    "another compiler": (RTX_HEADER, {}, "a plan of TensorRT-RTX, not of TensorRT"),
    "a manifest that is not the plan's": (
        PlanHeader("tensorrt", "10.9.0.1"),
        {"installed": "10.9.0.1"},
        "its header says TensorRT 10.9.0.1, but the manifest says 10.13.2.6",
    ),
    "no driver": (
        HEADER,
        {**NONE, "driver": "", "gpu_problem": "no NVIDIA driver: libcuda.so.1"},
        "no GPU to run an engine on: no NVIDIA driver",
    ),
    "no GPU": (HEADER, {**NONE, "gpu_problem": "the NVIDIA driver sees no GPU"}, "the NVIDIA driver sees no GPU"),
    "an old driver": (
        HEADER,
        {"driver": "12.4"},
        "too old: it supports CUDA 12.4, but TensorRT 10.13.2.6 needs CUDA 13",
    ),
    "no compiler": (HEADER, {"installed": ""}, "TensorRT is not installed"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_reason_alone_is_told_and_only_a_wrong_plan_is_an_error(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could run elsewhere is "could not run here" to export, build and verify: a DependencyError, and no failure."""
    header, here, words = CASES[case]
    found = obstacles("tensorrt", BUILT, header, replace(ADA, **here))
    assert len(found) == (2 if case == "another compiler" else 1), found  # a plan of RTX has RTX's version besides
    assert re.search(words, found[0].reason), found[0].reason
    assert found[0].advice
    monkeypatch.setattr(compatibility, "here", lambda name: replace(ADA, **here))
    monkeypatch.setattr(compatibility, "read_header", lambda path, plan: header)
    wrong = case in ("another compiler", "a manifest that is not the plan's")
    with pytest.raises(EngineError if wrong else DependencyError):
        require_compatible("tensorrt", PATH, b"", BUILT)


def test_the_driver_comes_before_what_it_hides() -> None:
    """Where a driver is too old, it reports no GPU: the driver is what must be mended."""
    at = replace(ADA, driver="11.8", gpu="", compute_capability="", gpu_problem="cuInit failed", installed="9.1.0.0")
    assert [("driver is too old" in reason) for reason in reasons(BUILT, HEADER, at)] == [True, False, False]


@pytest.mark.parametrize(("driver", "needs"), [("13.2", 13), ("14.0", 13), ("12.4", None), ("12.0", 12)])
def test_a_driver_of_the_same_major_version_or_newer_will_do(driver: str, needs: int | None) -> None:
    assert reasons(BUILT, HEADER, replace(ADA, driver=driver, needs_cuda=needs)) == []


@pytest.mark.parametrize(
    ("installed", "runs"),
    [("10.13.2.6", True), ("10.14.0.1", True), ("11.4.0.1", True), ("12.0.0.1", False), ("10.9.0.1", False)],
)
def test_a_version_compatible_plan_runs_on_newer_versions_up_to_the_next_major(installed: str, runs: bool) -> None:
    built = BUILT.model_copy(update={"version_compatible": True})
    assert (reasons(built, HEADER, replace(ADA, installed=installed)) == []) == runs
    assert reasons(BUILT, HEADER, replace(ADA, installed="11.4.0.1")) != []


@pytest.mark.parametrize(
    ("level", "capability", "runs"),
    [
        ("none", "8.6", False),
        ("ampere+", "8.6", True),
        ("ampere+", "12.0", True),
        ("ampere+", "7.5", False),
        ("same-cc", "8.9", True),
        ("same-cc", "8.6", False),
    ],
)
def test_hardware_compatible_plans_run_on_the_gpus_of_their_level(
    level: HardwareCompatible, capability: str, runs: bool
) -> None:
    built = BUILT.model_copy(update={"hardware_compatible": level})
    at = replace(ADA, gpu="another", compute_capability=capability)
    assert (reasons(built, HEADER, at) == []) == runs


@pytest.mark.parametrize(("capability", "runs"), [("8.0", True), ("8.6", True), ("7.5", False), ("12.0", False)])
def test_an_rtx_plan_runs_on_the_capabilities_of_its_header(capability: str, runs: bool) -> None:
    at = replace(RTX_HERE, compute_capability=capability)
    found = obstacles("tensorrt_rtx", None, RTX_HEADER, at)
    assert (not found) == runs
    assert runs or f"--compute-capability {capability}" in found[0].advice


@pytest.mark.parametrize(
    ("gpu", "capability"), [("NVIDIA H200", "9.0"), ("NVIDIA Thor", "11.0"), ("NVIDIA B200", "10.0")]
)
def test_a_gpu_that_rtx_does_not_serve_gets_tensorrt_as_advice(gpu: str, capability: str) -> None:
    """``--compute-capability 9.0`` is refused by RTX; a plan for every GPU that it serves does not run there either."""
    at = replace(RTX_HERE, gpu=gpu, compute_capability=capability)
    (found,) = obstacles("tensorrt_rtx", None, RTX_HEADER, at)
    assert found.of == "machine"
    assert f"does not run on {gpu} (compute capability {capability})" in found.reason
    assert found.advice == "use TensorRT on this GPU: skdeploy build BUNDLE --target tensorrt"
    assert reasons(BUILT, HEADER, replace(ADA, gpu=gpu, compute_capability="8.9")) == []


# What is asked of this machine


def test_no_gpu_is_told_of_a_real_plan_as_what_is_missing(
    rtx_plans: dict[tuple[str, ...], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "devices", lambda: ())
    monkeypatch.setattr(cuda, "driver_problem", lambda: "no NVIDIA driver")
    with pytest.raises(DependencyError) as refusal:
        require_compatible("tensorrt_rtx", PATH, rtx_plans[()], None)
    assert refusal.value.message == "no GPU to run an engine on: no NVIDIA driver"  # reports give it beside the path


def test_a_real_plan_for_another_gpu_is_refused_in_one_sentence(
    rtx_plans: dict[tuple[str, ...], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "devices", lambda: (cuda.CudaDevice(0, "NVIDIA T4", "7.5", 16 << 30),))
    monkeypatch.setattr(cuda, "driver_version", lambda: "13.0")
    with pytest.raises(DependencyError, match=r"for compute capability 8.6, but NVIDIA T4 has 7.5"):
        require_compatible("tensorrt_rtx", PATH, rtx_plans[("8.6",)], None)
    require_compatible("tensorrt_rtx", PATH, rtx_plans[("7.5",)], None)


def test_here_is_this_machine_and_its_package() -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")
    at = here("tensorrt_rtx")
    assert (at.system, at.machine) == (platform.system(), platform.machine())
    assert at.installed == engines.version("tensorrt_rtx")
    assert at.needs_cuda in compatibility._CUDA_MAJORS


def test_what_a_build_is_for_survives_json_and_agrees_with_the_header(rtx_plans: dict[tuple[str, ...], bytes]) -> None:
    trt = engines.load("tensorrt_rtx")
    for capabilities in ((), ("8.6",)):
        made = built_for(trt, BuildOptions(PROFILE, compute_capabilities=capabilities, strip=bool(capabilities)))
        assert BuiltFor.model_validate_json(made.model_dump_json()) == made
        assert made.compute_capabilities == read_header(PATH, rtx_plans[capabilities]).compute_capabilities
        assert made.stripped == bool(capabilities)

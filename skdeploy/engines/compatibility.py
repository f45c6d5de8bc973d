"""Whether a plan can run on this machine, told before the compiler is imported: from the manifest and the plan's first bytes.

What is known of a plan's header, and from where; nothing else of it is read:

- bytes 0 to 3 are the tag: ``ftrt`` for TensorRT (trtexec, ``printPlanVersion`` in NVIDIA/TensorRT's sampleEngines.cpp,
  kPLAN_FILE_TAG), ``vtrt`` for TensorRT-RTX (every plan that 1.7.1 built here);
- bytes 4 to 7 are the serialization version; trtexec knows 0 alone, and so do we: of another, only the tag is believed;
- bytes 24 to 27 are the compiler's version (the same function; TensorRT-RTX 1.7.1.116 wrote 1, 7, 1, 116);
- what else one compiler's header tells, its own ``read_header`` says.

Integers are little-endian.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from skdeploy import engines
from skdeploy.core.errors import DependencyError, EngineError
from skdeploy.core.spec import Frozen
from skdeploy.devices import cuda
from skdeploy.engines._api import Compiler
from skdeploy.engines._configure import known_capabilities
from skdeploy.engines.options import BuildOptions, HardwareCompatible, version_numbers

_VERSION: Final = slice(24, 28)
_SERIALIZATION: Final = 0
_TURING: Final = "7.5"  # TensorRT-RTX builds for Turing only where it is named: 1.7's plans say so in their headers
_CUDA_MAJORS: Final = (12, 13)  # of the compilers' wheels: tensorrt_cu12, tensorrt_rtx_cu13 and so on
_REBUILD: Final = "build it again here, from the bundle's graph: skdeploy build BUNDLE"


class BuiltFor(Frozen):
    """The compiler, machine and GPUs that an engine was built with and for, as in the manifest.

    ``gpu`` is the name of the GPU that built it, null ahead of time; ``compute_capabilities``, like "8.9", are those that it
    runs on; ``driver`` is the newest CUDA version that the builder's driver served, null without one. ``stripped``: the weights
    are not in the plan.
    """

    compiler: str
    version: str
    system: str
    machine: str
    gpu: str | None = None
    compute_capabilities: Annotated[tuple[str, ...], Field(strict=False)] = ()
    driver: str | None = None
    version_compatible: bool = False
    hardware_compatible: HardwareCompatible = "none"
    stripped: bool = False


@dataclass(frozen=True)
class PlanHeader:
    """A plan's header; a version or capabilities that it does not contain are empty."""

    compiler: str
    version: str = ""
    compute_capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Here:
    """This machine: ``driver`` is the newest CUDA version that the driver serves, empty without one; ``gpu_problem`` says why
    there is no GPU. ``installed`` is the installed version of the plan's compiler, empty if there is none, and ``needs_cuda``
    the major version of CUDA that it is built for, None where its package does not say.
    """

    system: str
    machine: str
    gpu: str = ""
    compute_capability: str = ""
    driver: str = ""
    gpu_problem: str = ""
    installed: str = ""
    needs_cuda: int | None = None


@dataclass(frozen=True)
class Obstacle:
    """Why a plan does not run. ``of`` is the plan, which is damaged or another; the pair, a good plan that was built for
    another machine; or the machine, which runs no such plan at all.
    """

    of: Literal["plan", "pair", "machine"]
    reason: str
    advice: str


def built_for(trt: Compiler, options: BuildOptions) -> BuiltFor:
    """Describe what a build with these options on this machine makes, to record beside the plan."""
    devices = cuda.devices()
    known = known_capabilities(trt)
    if known:
        capabilities = options.compute_capabilities or tuple(name for name in known if name != _TURING)
    else:
        capabilities = tuple(device.compute_capability for device in devices[:1])  # TensorRT builds for the first
    return BuiltFor(
        compiler=trt.__name__,
        version=trt.__version__,
        system=platform.system(),
        machine=platform.machine(),
        gpu=devices[0].name if devices and not known else None,
        compute_capabilities=capabilities,
        driver=cuda.driver_version() or None,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        stripped=options.strip,
    )


def require_compatible(name: str, path: Path, plan: bytes, built_for: BuiltFor | None) -> None:
    """Raises EngineError if ``plan``, the content of ``path`` that the compiler ``name`` is to load, is not a whole plan, or
    not the one that the manifest means; DependencyError if it cannot run here: built for another machine, GPU or version, or
    there is no driver, no GPU, no compiler, or one that does not serve this GPU.
    """
    header = read_header(path, plan)
    found = obstacles(name, built_for, header, here(name))
    if not found:
        return
    first = found[0]
    if first.of == "plan":
        raise EngineError(f"{path} does not run here: {first.reason}", advice=first.advice)
    raise DependencyError(first.reason, advice=first.advice)  # reports give it beside the plan's name


def read_header(path: Path, plan: bytes) -> PlanHeader:
    """Read the header of a plan. Raises EngineError for a file that is empty, cut off or not a plan."""
    if not plan:
        raise EngineError(f"{path} is empty: no plan was written to it", advice=_REBUILD)
    known = [engines.compiler(name) for name in engines.COMPILERS]
    facts = next((each for each in known if plan[:4] == each.TAG), None)
    if facts is None:
        tags = " or ".join(repr(each.TAG) for each in known)
        raise EngineError(
            f"{path} is not a plan: it begins with {plan[:4]!r}, a plan begins with {tags}",
            advice="give the engine that skdeploy built, not an ONNX file or an archive",
        )
    if len(plan) < facts.HEADER_BYTES:
        raise EngineError(
            f"{path} is cut off: {len(plan)} bytes are less than a plan's header of {facts.HEADER_BYTES}",
            advice=_REBUILD,
        )
    (serialization,) = struct.unpack_from("<I", plan, 4)
    if serialization != _SERIALIZATION:
        return PlanHeader(facts.NAME)
    problem, capabilities = facts.read_header(plan)
    if problem:
        raise EngineError(f"{path} {problem}", advice=_REBUILD)
    return PlanHeader(facts.NAME, ".".join(map(str, plan[_VERSION])), capabilities)


def here(name: str) -> Here:
    """This machine, as a plan of the compiler ``name`` sees it, in milliseconds: nothing is imported."""
    devices = cuda.devices()
    return Here(
        system=platform.system(),
        machine=platform.machine(),
        gpu=devices[0].name if devices else "",
        compute_capability=devices[0].compute_capability if devices else "",
        driver=cuda.driver_version(),
        gpu_problem=cuda.driver_problem(),
        installed=engines.version(name) if engines.installed(name) else "",
        needs_cuda=_needs_cuda(name),
    )


def obstacles(name: str, built: BuiltFor | None, header: PlanHeader, at: Here) -> tuple[Obstacle, ...]:
    """Everything that keeps a plan from running, what must be mended first before the rest; empty if nothing is known to.

    ``name`` is the compiler that is to load it. Where manifest and header both speak, they must say the same.
    """
    serves = engines.compiler(name).SERVES
    unserved = bool(serves and at.compute_capability) and (
        at.compute_capability not in (*serves, *header.compute_capabilities)
    )
    found = [*_of_plan(name, built, header), *_of_machine(name, at, unserved=unserved)]
    return (*found, *_of_pair(name, built, header, at, unserved=unserved))


def _of_plan(name: str, built: BuiltFor | None, header: PlanHeader) -> Iterator[Obstacle]:
    label = engines.label(name)
    if header.compiler != name:
        other = engines.label(header.compiler)
        yield Obstacle("plan", f"it is a plan of {other}, not of {label}", f"run it with {other}, or {_REBUILD}")
    elif built is not None and header.version and not _same(header.version, built.version):
        why = f"its header says {label} {header.version}, but the manifest says {built.version}"
        yield Obstacle("plan", why, "the plan or the manifest was replaced: " + _REBUILD)


def _of_machine(name: str, at: Here, *, unserved: bool) -> Iterator[Obstacle]:
    """CUDA's minor version compatibility: a driver of the same major version will do, an older one will not. ``unserved``: a
    GPU that the compiler has no code for: TensorRT-RTX none for data centre GPUs of Hopper and Blackwell, and Jetson.
    """
    label = engines.label(name)
    if at.driver and at.needs_cuda is not None and version_numbers(at.driver)[0] < at.needs_cuda:
        yield Obstacle(
            "machine",
            f"the NVIDIA driver is too old: it supports CUDA {at.driver}, but {label} {at.installed} needs "
            f"CUDA {at.needs_cuda}",
            f"install a newer NVIDIA driver, or {label} for CUDA {version_numbers(at.driver)[0]}",
        )
    if not at.gpu:
        yield Obstacle(
            "machine",
            f"no GPU to run an engine on: {at.gpu_problem}",
            "run on a machine with an NVIDIA GPU and driver, or run the ONNX file with ONNX Runtime",
        )
    if unserved:
        yield Obstacle(
            "machine",
            f"{label} does not run on {at.gpu} (compute capability {at.compute_capability}): it supports "
            f"{', '.join(engines.compiler(name).SERVES)}",
            " or ".join(
                f"use {engines.label(other)} on this GPU: skdeploy build BUNDLE --target {other}"
                for other in engines.COMPILERS
                if not engines.compiler(other).SERVES
            ),
        )
    if not at.installed:
        yield Obstacle("machine", f"{label} is not installed", engines.install_advice(name))


def _of_pair(name: str, built: BuiltFor | None, header: PlanHeader, at: Here, *, unserved: bool) -> Iterator[Obstacle]:
    """Plans are not portable between operating systems or processors: NVIDIA, "Engine Compatibility"."""
    if built is not None and (built.system, built.machine) != (at.system, at.machine):
        why = f"it was built on {built.system} {built.machine}, but this is {at.system} {at.machine}"
        yield Obstacle("pair", why, _REBUILD)
    version = header.version or (built.version if built is not None else "")
    if version and at.installed and not _same(version, at.installed):
        yield from _of_versions(engines.label(name), version, at.installed, built)
    capabilities = header.compute_capabilities or (built.compute_capabilities if built is not None else ())
    if unserved or not at.compute_capability or not capabilities or at.compute_capability in capabilities:
        return
    if built is not None and built.hardware_compatible == "ampere+" and version_numbers(at.compute_capability) >= (8,):
        return
    made = f" ({built.gpu})" if built is not None and built.gpu else ""
    wider = f"skdeploy build BUNDLE --compute-capability {at.compute_capability}"
    yield Obstacle(
        "pair",
        f"it is for compute capability {', '.join(capabilities)}{made}, but {at.gpu} has {at.compute_capability}",
        f"build it for this GPU: {wider}" if "compute_capabilities" in engines.compiler(name).TAKES else _REBUILD,
    )


def _of_versions(label: str, version: str, installed: str, built: BuiltFor | None) -> Iterator[Obstacle]:
    """The same version; for version-compatible plans the same or the next major one, 10 to 11, and none older.

    The fourth number, a build of one release, is left to TensorRT's own check.
    """
    if built is None or not built.version_compatible:
        why = f"it was built with {label} {version}, but {installed} is installed"
        yield Obstacle("pair", why, f"{_REBUILD}, or install {label} {version}")
        return
    made, runs = version_numbers(version), version_numbers(installed)
    if made[:2] > runs[:2] or runs[0] - made[0] > 1:
        newest = f"that version and newer up to {made[0] + 1}.x, {installed} is installed"
        yield Obstacle("pair", f"its version-compatible plan of {label} {version} runs on {newest}", _REBUILD)


def _same(one: str, other: str) -> bool:
    return version_numbers(one)[:3] == version_numbers(other)[:3]


def _needs_cuda(name: str) -> int | None:
    for major in _CUDA_MAJORS:
        try:
            metadata.version(f"{name}_cu{major}")
        except metadata.PackageNotFoundError:
            continue
        return major
    return None

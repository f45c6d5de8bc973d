"""The content of ``skdeploy doctor``: what works on this machine."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace

from skdeploy import engines
from skdeploy.backends import DEFAULT, backend, onnxruntime, running
from skdeploy.core.packages import Availability
from skdeploy.core.version import __version__
from skdeploy.devices import cuda


@dataclass(frozen=True)
class Diagnosis:
    """``parts`` are backends and compilers; ``problems`` are what keeps every bundle from running."""

    skdeploy: str
    python: str
    platform: str
    parts: tuple[Availability, ...]
    problems: tuple[str, ...]
    auto_target: str


def diagnose() -> Diagnosis:
    """Probes everything; takes a few seconds, since it imports it."""
    needed = (backend(DEFAULT).probe(),)
    optional = [backend(name).probe() for name in running("module", "onnx") if name != DEFAULT]
    optional += [engines.probe(name) for name in engines.COMPILERS]
    problems = [f"{part.name} does not work: {part.reason}. {part.install}" for part in needed if not part.available]
    trap = onnxruntime.installed_twice()
    if trap:
        problems.append(trap)
    if not cuda.devices():
        optional = [_without_gpu(part) for part in optional]
    chosen, reason = engines.choose(engines.AUTO)
    return Diagnosis(
        skdeploy=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        parts=(*needed, *optional),
        problems=tuple(problems),
        auto_target=f"{chosen or 'none'} ({reason})",
    )


def _without_gpu(part: Availability) -> Availability:
    """A part that cannot work here for want of a GPU: nothing that could be installed would change that."""
    if part.name in engines.COMPILERS:
        needs_gpu = not engines.compiler(part.name).AHEAD_OF_TIME
    else:
        needs_gpu = backend(part.name).DEVICE == "gpu"
    if part.available or not needs_gpu:
        return part
    return replace(part, reason=f"needs an NVIDIA GPU: {cuda.driver_problem()}", install="")

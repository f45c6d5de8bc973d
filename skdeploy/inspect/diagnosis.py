"""The content of ``skdeploy doctor``: what works on this machine."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from skdeploy import engines
from skdeploy.backends import DEFAULT, backend, onnxruntime, running
from skdeploy.core.packages import Availability
from skdeploy.core.version import __version__


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
    chosen, reason = engines.choose(engines.AUTO)
    return Diagnosis(
        skdeploy=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        parts=(*needed, *optional),
        problems=tuple(problems),
        auto_target=f"{chosen or 'none'} ({reason})",
    )

"""Runs TensorRT plans on the GPU that they were built for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from skdeploy.core.packages import Availability
from skdeploy.engines import tensorrt as compiler

if TYPE_CHECKING:
    from skdeploy.backends._plan_runner import PlanSession
    from skdeploy.engines.compatibility import BuiltFor

NAME: Final = compiler.NAME
FORMAT: Final = "engine"
DEVICE: Final = "gpu"
DISTRIBUTIONS: Final = compiler.DISTRIBUTIONS
EXTRA: Final = compiler.EXTRA
HELP: Final = ""
OPTIONS: Final = None


def probe() -> Availability:
    """Whether TensorRT, a GPU and CUDA's bindings are here. Never raises."""
    from skdeploy.backends import _plan_runner  # what builds and runs plans takes longer to import than all else here

    return _plan_runner.probe(NAME)


def open_session(
    artifact: Path, *, sha256: str, built_for: BuiltFor | None = None, weights: Path | None = None
) -> PlanSession:
    """A plan whose digest is ``sha256``; see ``_plan_runner.open_plan`` for what is checked and raised."""
    from skdeploy.backends import _plan_runner

    return _plan_runner.open_plan(NAME, artifact, sha256=sha256, built_for=built_for, weights=weights)

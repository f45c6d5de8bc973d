"""Runs plans on the GPU that they were built for: a backend for each compiler of engines, by the compiler's name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from skdeploy import engines
from skdeploy.core.packages import Availability

if TYPE_CHECKING:
    from skdeploy.backends._plan_runner import PlanSession
    from skdeploy.engines.compatibility import BuiltFor


@dataclass(frozen=True)
class PlanBackend:
    """The ``base.Backend`` of one compiler."""

    NAME: str
    FORMAT: ClassVar[Literal["engine"]] = "engine"
    DEVICE: ClassVar[Literal["gpu"]] = "gpu"
    HELP: ClassVar[str] = ""
    OPTIONS: ClassVar[None] = None

    @property
    def DISTRIBUTIONS(self) -> tuple[str, ...]:  # noqa: N802  (a fact of every backend, which are modules else)
        return engines.compiler(self.NAME).DISTRIBUTIONS

    @property
    def EXTRA(self) -> str:  # noqa: N802  (the same)
        return engines.compiler(self.NAME).EXTRA

    def probe(self) -> Availability:
        """Whether the compiler, a GPU and CUDA's bindings are here. Never raises."""
        from skdeploy.backends import (
            _plan_runner,  # what builds and runs plans takes longer to import than all else here
        )

        return _plan_runner.probe(self.NAME)

    def open_session(
        self, artifact: Path, *, sha256: str, built_for: BuiltFor | None = None, weights: Path | None = None
    ) -> PlanSession:
        """A plan whose digest is ``sha256``; see ``_plan_runner.open_plan`` for what is checked and raised."""
        from skdeploy.backends import _plan_runner

        return _plan_runner.open_plan(self.NAME, artifact, sha256=sha256, built_for=built_for, weights=weights)

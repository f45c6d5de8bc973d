"""What a manifest keeps of an engine's build, read again: a hand or a newer skdeploy may have written anything there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError

from skdeploy.bundle.artifact import Artifact
from skdeploy.core.errors import IntegrityError
from skdeploy.core.spec import Frozen
from skdeploy.engines.compatibility import BuiltFor
from skdeploy.engines.proof import PrecisionProof


class EngineRecord(Frozen):
    """The part of ``EngineReport`` that verbs read. ``built_for`` and ``proof`` are None in bundles of earlier versions."""

    model_config = ConfigDict(extra="ignore")

    compiler: Literal["tensorrt", "tensorrt_rtx"]
    runs_on: Annotated[tuple[str, ...], Field(strict=False)] = ()
    weights_memory_bytes: int | None = None
    activation_memory_bytes: int | None = None
    workspace_bytes: int | None = None
    tactic_bytes: int | None = None
    built_for: BuiltFor | None = None
    proof: PrecisionProof | None = None

    @property
    def memory(self) -> dict[str, int]:
        """Bytes on the device, by the names of ``EngineReport``, as far as they are known."""
        names = ("weights_memory_bytes", "activation_memory_bytes", "workspace_bytes", "tactic_bytes")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def engine_record(engine: Artifact) -> EngineRecord:
    """Of an engine of a bundle. Raises IntegrityError if its manifest says something else than a build writes."""
    try:
        return EngineRecord.model_validate(engine.details)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise IntegrityError(
            f"the manifest's details of {engine.path} are not what this version of skdeploy writes: {where}: {first['msg']}",
            advice=f"remove {engine.path} from the bundle, and build it again: skdeploy build BUNDLE",
        ) from error

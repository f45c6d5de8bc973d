"""What was found out about a bundle after its export: small JSON files beside it, each bound to the artifacts it speaks of.

An export owns ``manifest.json`` and all that it lists. What ``evaluate``, ``sensitivity`` or ``attention`` measure later goes
to ``evidence/<name>.json``, and holds only as long as the digests in it are the bundle's.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import Field, JsonValue, ValidationError

from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle
from skdeploy.core.errors import IntegrityError, UsageError
from skdeploy.core.files import write_text
from skdeploy.core.progress import Progress
from skdeploy.core.spec import Frozen
from skdeploy.core.version import __version__

FOLDER: Final = "evidence"
MAX_BYTES: Final = 64 << 20  # a report of a large network has a few megabytes

Report = TypeVar("Report", bound=Frozen)


class Evidence(Frozen):
    """One finding: ``artifacts`` has the sha256 of each artifact measured, by path; ``content`` is the report."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    skdeploy: str
    created: str
    name: str
    artifacts: dict[str, str]
    content: dict[str, JsonValue]


def keep_evidence(bundle: Bundle, name: str, report: Frozen, artifacts: Iterable[Artifact], tell: Progress) -> None:
    """Writes a finding for the bundle's report. A bundle that takes no file, or a full disk, does not undo what was measured:
    ``tell`` says that it is not kept, and the caller prints it all the same.
    """
    try:
        write_evidence(bundle, name, report, artifacts)
    except (UsageError, IntegrityError) as error:
        tell.note(f"the result is not kept for the bundle's report: {error.message}")


def write_evidence(bundle: Bundle, name: str, report: Frozen, artifacts: Iterable[Artifact]) -> Path:
    """Replaces ``evidence/<name>.json``, whole or not at all. Raises UsageError or IntegrityError if it cannot be written."""
    evidence = Evidence(
        skdeploy=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        name=name,
        artifacts={artifact.path: artifact.sha256 for artifact in artifacts},
        content=report.model_dump(mode="json"),
    )
    path = bundle.folder / FOLDER / f"{name}.json"
    write_text(path, evidence.model_dump_json(by_alias=True, indent=1) + "\n")
    return path


def read_evidence(bundle: Bundle, name: str, report: type[Report]) -> Report | None:
    """The finding of this name, or None if there is none, or it is about artifacts that the bundle has no longer.

    Raises IntegrityError for a file that is not what ``write_evidence`` wrote.
    """
    path = bundle.folder / FOLDER / f"{name}.json"
    try:
        if not path.resolve().is_relative_to(bundle.folder.resolve()):
            raise IntegrityError(f"{path} is a link that leaves the bundle", advice="remove it")
        if path.stat().st_size > MAX_BYTES:
            raise IntegrityError(
                f"{path} has {path.stat().st_size} bytes: no finding is that large", advice="remove it"
            )
        evidence = Evidence.model_validate_json(path.read_bytes())
        found = report.model_validate_json(_json(evidence))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise IntegrityError(
            f"{path} cannot be read: {str(error).splitlines()[0]}", advice="remove it, and measure again"
        ) from error
    current = {artifact.path: artifact.sha256 for artifact in bundle.manifest.artifacts}
    holds = bool(evidence.artifacts) and all(
        current.get(artifact) == sha256 for artifact, sha256 in evidence.artifacts.items()
    )
    return found if holds else None


def _json(evidence: Evidence) -> str:
    import json

    return json.dumps(evidence.content)

"""Evidence about a bundle after its export: small JSON files in it, each bound to the artifacts it is about.

An export owns ``manifest.json`` and all that it lists. What ``evaluate``, ``sensitivity`` or ``attention`` measure later goes
to ``evidence/<name>.json``, and holds only as long as the digests in it are the bundle's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import Field, JsonValue

from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle, write_record
from skdeploy.core.errors import IntegrityError, UsageError
from skdeploy.core.finite import require_finite
from skdeploy.core.progress import Progress
from skdeploy.core.spec import Frozen
from skdeploy.core.version import __version__

FOLDER: Final = "evidence"

Report = TypeVar("Report", bound=Frozen)


class Evidence(Frozen):
    """One finding: ``artifacts`` has the sha256 of each artifact measured, by path; ``content`` is the report."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    skdeploy: str
    created: str
    name: str
    artifacts: dict[str, str]
    content: dict[str, JsonValue]


def keep_evidence(
    bundle: Bundle,
    name: str,
    report: Frozen,
    artifacts: Iterable[Artifact],
    tell: Progress,
    output: Path | None = None,
    advice: str = "--output FILE writes it elsewhere",
) -> None:
    """Writes a finding for the bundle's report; to ``output`` instead if it is given, and then raises as ``write_text``.

    A bundle that takes no file, or a full disk, does not undo what was measured: ``tell`` says that it is not kept, and the
    caller prints it all the same.
    """
    if output is not None:
        write_record(output, _evidence(name, report, artifacts))
        tell.note(f"result: {output}")
        return
    try:
        write_evidence(bundle, name, report, artifacts)
    except (UsageError, IntegrityError) as error:
        tell.note(f"the result is not saved for the bundle's report: {error.message}; {advice}")


def write_evidence(bundle: Bundle, name: str, report: Frozen, artifacts: Iterable[Artifact]) -> Path:
    """Replaces ``evidence/<name>.json``, whole or not at all. Raises UsageError or IntegrityError if it cannot be written."""
    return bundle.write_record(f"{FOLDER}/{name}.json", _evidence(name, report, artifacts))


def _evidence(name: str, report: Frozen, artifacts: Iterable[Artifact]) -> Evidence:
    return Evidence(
        skdeploy=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        name=name,
        artifacts={artifact.path: artifact.sha256 for artifact in artifacts},
        content=report.model_dump(mode="json"),
    )


def read_evidence(bundle: Bundle, name: str, report: type[Report]) -> Report | None:
    """The finding of this name, or None if there is none, or it is about artifacts that the bundle has no longer.

    Raises IntegrityError for a file that is not what ``write_evidence`` wrote.
    """
    path = bundle.folder / FOLDER / f"{name}.json"
    try:
        content = bundle.read_record(path)
        evidence = Evidence.model_validate_json(content)
        require_finite(content)
        found = report.model_validate_json(json.dumps(evidence.content))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"cannot read {path}: {str(error).splitlines()[0]}", advice="delete it, and measure again"
        ) from error
    current = {artifact.path: artifact.sha256 for artifact in bundle.manifest.artifacts}
    return found if evidence.artifacts and evidence.artifacts.items() <= current.items() else None

"""All that is known of a bundle, read and checked for whether it still speaks of the artifacts that are there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from pydantic import ValidationError

from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.evidence import FOLDER, read_evidence
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.receipts import Receipt, read_receipts
from skdeploy.errors import IntegrityError
from skdeploy.parity.report import HeadroomReport, ParityReport
from skdeploy.spec import Frozen

if TYPE_CHECKING:
    from skdeploy.attention.report import AttentionReport
    from skdeploy.parity.accuracy import Evaluation
    from skdeploy.parity.blame_report import BlameReport
    from skdeploy.quant.mixed import MixedPrecision
    from skdeploy.quant.ranges import Ranges
    from skdeploy.quant.sensitivity import SensitivityReport

Report = TypeVar("Report", bound=Frozen)

PARITY: Final = "parity.json"
HEADROOM: Final = "headroom.json"
RANGES: Final = "ranges.json"
MIXED: Final = "mixed.json"
EVIDENCE: Final = ("accuracy", "blame", "sensitivity", "attention")


@dataclass
class Findings:
    """What the export recorded, and what was measured later; None for what is not there or speaks of other artifacts.

    ``outdated`` are names of the latter: files of the bundle, or evidence. ``unknown`` are files among the evidence that no
    section shows.
    """

    bundle: Bundle
    parity: ParityReport | None = None
    headroom: HeadroomReport | None = None
    ranges: Ranges | None = None
    mixed: MixedPrecision | None = None
    accuracy: Evaluation | None = None
    blame: BlameReport | None = None
    sensitivity: SensitivityReport | None = None
    attention: AttentionReport | None = None
    receipts: tuple[Receipt, ...] = ()
    outdated: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def not_measured(self) -> tuple[str, ...]:
        """Evidence that could be there and is not. Sensitivity is of bundles with ranges only."""
        wanted = [name for name in EVIDENCE if name != "sensitivity" or self.bundle.artifact(RANGES) is not None]
        return tuple(name for name in wanted if getattr(self, name) is None and name not in self.outdated)

    @property
    def graphs(self) -> tuple[Artifact, ...]:
        """The artifacts that compute logits."""
        return tuple(a for a in self.bundle.manifest.artifacts if a.format in ("onnx", "engine"))


def read_findings(bundle: Bundle) -> Findings:
    """Checks every digest and reads every report.

    Raises IntegrityError for a file that was altered or cannot be read, and for a receipt of other artifacts.
    """
    from skdeploy.attention.report import AttentionReport
    from skdeploy.parity.accuracy import Evaluation
    from skdeploy.parity.blame_report import BlameReport
    from skdeploy.parity.verification import with_receipts
    from skdeploy.quant.mixed import MixedPrecision
    from skdeploy.quant.ranges import Ranges
    from skdeploy.quant.sensitivity import SensitivityReport

    bundle.check_all()
    found = Findings(bundle)
    if bundle.manifest.verdict != "incomplete":  # what an earlier export compared does not prove this one
        found.parity = _recorded(found, PARITY, ParityReport)
    found.receipts = read_receipts(bundle)
    if found.parity is not None:
        found.parity = with_receipts(found.parity, found.receipts)
    found.headroom = _recorded(found, HEADROOM, HeadroomReport)
    found.ranges = _recorded(found, RANGES, Ranges)
    found.mixed = _recorded(found, MIXED, MixedPrecision)
    found.accuracy = _evidence(found, "accuracy", Evaluation)
    found.blame = _evidence(found, "blame", BlameReport)
    found.sensitivity = _evidence(found, "sensitivity", SensitivityReport)
    found.attention = _evidence(found, "attention", AttentionReport)
    folder = bundle.folder / FOLDER
    if folder.is_dir():
        known = {f"{name}.json" for name in EVIDENCE}
        found.unknown = sorted(entry.name for entry in folder.iterdir() if entry.is_file() and entry.name not in known)
    return found


def _recorded(found: Findings, path: str, report: type[Report]) -> Report | None:
    """A report that the export wrote, unless one of the artifacts that it was made from has been replaced since."""
    bundle = found.bundle
    artifact = bundle.artifact(path)
    if artifact is None:
        return None
    for parent, sha256 in artifact.provenance.parents.items():
        current = bundle.artifact(parent)
        if current is not None and current.sha256 != sha256:
            found.outdated.append(path)
            return None
    return _read(bundle, artifact, report)


def _read(bundle: Bundle, artifact: Artifact, report: type[Report]) -> Report:
    file = bundle.check(artifact)
    try:
        return report.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise IntegrityError(
            f"{file} cannot be read: {str(error).splitlines()[0]}", advice="export again into another folder"
        ) from error


def _evidence(found: Findings, name: str, report: type[Report]) -> Report | None:
    content = read_evidence(found.bundle, name, report)
    if content is None and (found.bundle.folder / FOLDER / f"{name}.json").exists():
        found.outdated.append(name)
    return content

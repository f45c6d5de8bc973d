"""The facts behind a verdict: the manifest, the export's reports and later evidence, if they are about these artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.contents import HEADROOM, PARITY, RANGES
from skdeploy.bundle.evidence import FOLDER, read_evidence
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.manifest import Manifest
from skdeploy.bundle.receipts import Receipt, read_receipts
from skdeploy.core.spec import Frozen
from skdeploy.parity.report import HeadroomReport, ParityReport, ReceiptNote

if TYPE_CHECKING:
    from skdeploy.accuracy.gate import Evaluation
    from skdeploy.accuracy.quality import Quality
    from skdeploy.parity.blame_report import BlameReport
    from skdeploy.quant.ranges import Ranges

Report = TypeVar("Report", bound=Frozen)


@dataclass
class Facts:
    """Everything known about a bundle; None where it is missing or about other artifacts.

    ``parity`` has the receipts of devices in it. ``outdated`` names what speaks of other artifacts: files of the bundle, or
    evidence.
    """

    bundle: Bundle
    parity: ParityReport | None = None
    headroom: HeadroomReport | None = None
    ranges: Ranges | None = None
    accuracy: Evaluation | None = None
    quality: Quality | None = None
    blame: BlameReport | None = None
    receipts: tuple[Receipt, ...] = ()
    outdated: list[str] = field(default_factory=list)

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def folder(self) -> Path:
        return self.bundle.folder

    @property
    def graphs(self) -> tuple[Artifact, ...]:
        """The artifacts that compute logits."""
        return tuple(a for a in self.manifest.artifacts if a.format in ("onnx", "engine"))


def fill_facts(facts: Facts) -> None:
    """Checks every digest, and reads what is there into ``facts``.

    Raises IntegrityError for a file that was altered or cannot be read, and for a receipt of other artifacts.
    """
    from skdeploy.accuracy.gate import Evaluation
    from skdeploy.accuracy.quality import Quality
    from skdeploy.parity.blame_report import BlameReport
    from skdeploy.quant.ranges import Ranges

    bundle = facts.bundle
    bundle.check_all()
    if bundle.manifest.verdict != "incomplete":  # what an earlier export compared does not prove this one
        facts.parity = recorded(facts, PARITY, ParityReport)
    facts.receipts = read_receipts(bundle)
    if facts.parity is not None:
        facts.parity = with_receipts(facts.parity, facts.receipts)
    facts.headroom = recorded(facts, HEADROOM, HeadroomReport)
    facts.ranges = recorded(facts, RANGES, Ranges)
    facts.accuracy = evidence(facts, "accuracy", Evaluation)
    facts.quality = evidence(facts, "quality", Quality)
    facts.blame = evidence(facts, "blame", BlameReport)


def read_facts(bundle: Bundle) -> Facts:
    """The facts of a bundle. Raises as ``fill_facts``."""
    facts = Facts(bundle)
    fill_facts(facts)
    return facts


def recorded(facts: Facts, path: str, report: type[Report]) -> Report | None:
    """A report that the export wrote, unless one of the artifacts that it was made from has been replaced since."""
    bundle = facts.bundle
    artifact = bundle.artifact(path)
    if artifact is None:
        return None
    for parent, sha256 in artifact.provenance.parents.items():
        current = bundle.artifact(parent)
        if current is not None and current.sha256 != sha256:
            facts.outdated.append(path)
            return None
    return bundle.read_report(artifact, report)


def evidence(facts: Facts, name: str, report: type[Report]) -> Report | None:
    """Read the evidence of a later verb, unless it is about other artifacts."""
    content = read_evidence(facts.bundle, name, report)
    if content is None and (facts.folder / FOLDER / f"{name}.json").exists():
        facts.outdated.append(name)
    return content


def with_receipts(report: ParityReport, receipts: Sequence[Receipt]) -> ParityReport:
    """The report with what devices have recorded of each artifact."""
    notes: dict[str, tuple[ReceiptNote, ...]] = {}
    for one in receipts:
        about = {name: getattr(one, name) for name in ("kind", "created", "verdict", "path")}
        note = ReceiptNote(device=one.device.name, **about)
        notes[one.artifact] = (*notes.get(one.artifact, ()), note)
    found = tuple(c.model_copy(update={"receipts": notes.get(c.artifact, ())}) for c in report.comparisons)
    return report.model_copy(update={"comparisons": found})

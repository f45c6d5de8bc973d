"""All that is known of a bundle, read and checked for whether it still speaks of the artifacts that are there."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from skdeploy.accuracy.facts import Facts, evidence, fill_facts, recorded
from skdeploy.bundle.contents import MIXED
from skdeploy.bundle.evidence import FOLDER
from skdeploy.bundle.folder import Bundle
from skdeploy.report.blocks import Absent, Section

if TYPE_CHECKING:
    from skdeploy.attention.report import AttentionReport
    from skdeploy.quant.mixed import MixedPrecision
    from skdeploy.quant.sensitivity import SensitivityReport

EVIDENCE: Final = ("accuracy", "quality", "blame", "sensitivity", "attention")


@dataclass
class Findings(Facts):
    """The facts of the verdict, and other measurements. ``unknown`` are files among the evidence that no section shows."""

    mixed: MixedPrecision | None = None
    sensitivity: SensitivityReport | None = None
    attention: AttentionReport | None = None
    unknown: list[str] = field(default_factory=list)

    @property
    def shell_folder(self) -> str:
        """The bundle's folder, as one types it."""
        return shlex.quote(str(self.bundle.folder))

    def absent(self, name: str, title: str, text: str, command: str = "", *, of: str = "") -> Section:
        """The section of evidence that is missing or belongs to other artifacts; ``of``: its file, if it is not its name."""
        return Section(name, title, "", (Absent(text, command, outdated=(of or name) in self.outdated),))


def read_findings(bundle: Bundle) -> Findings:
    """Checks every digest and reads every report. Raises as ``accuracy.facts.fill_facts``."""
    from skdeploy.attention.report import AttentionReport
    from skdeploy.quant.mixed import MixedPrecision
    from skdeploy.quant.sensitivity import SensitivityReport

    found = Findings(bundle)
    fill_facts(found)
    found.mixed = recorded(found, MIXED, MixedPrecision)
    found.sensitivity = evidence(found, "sensitivity", SensitivityReport)
    found.attention = evidence(found, "attention", AttentionReport)
    folder = bundle.folder / FOLDER
    if folder.is_dir():
        known = {f"{name}.json" for name in EVIDENCE}
        found.unknown = sorted(entry.name for entry in folder.iterdir() if entry.is_file() and entry.name not in known)
    return found

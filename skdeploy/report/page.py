"""``report.html``: all that is known of a bundle, on one page that needs nothing else. It is a view, and no artifact."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from skdeploy.accuracy.verdict import decide_verdict
from skdeploy.bundle.evidence import FOLDER as EVIDENCE
from skdeploy.bundle.folder import MANIFEST, Bundle
from skdeploy.bundle.receipts import FOLDER as RECEIPTS
from skdeploy.core.errors import UsageError
from skdeploy.core.files import require_places, write_text
from skdeploy.core.packages import require
from skdeploy.core.version import __version__
from skdeploy.report.blocks import (
    Absent,
    Block,
    Bullets,
    Finding,
    Fold,
    Pictures,
    Section,
    Text,
    Trusted,
    heading,
    sentence,
    visible,
)
from skdeploy.report.findings import Findings, read_findings
from skdeploy.report.plots import key
from skdeploy.report.prose import prose
from skdeploy.report.verdict import key_figures

NAME: Final = "report.html"
FOLDED: Final = ("headroom", "calibration", "provenance")  # for those who look for a cause
TEMPLATES: Final = Path(__file__).parent / "templates"


def write_report(bundle: Bundle, path: Path | None = None) -> Path:
    """Writes the report, whole or not at all, to ``path`` or into the bundle, and returns where it is.

    Raises IntegrityError for a file or a finding that was altered or cannot be read, DependencyError without Jinja2, UsageError
    for a place that takes no file.
    """
    target = bundle.folder / NAME if path is None else path
    _check_free(bundle, target)
    try:
        require_places(target)
    except UsageError as error:
        if path is None:
            raise UsageError(error.message, advice="give --output FILE outside of the bundle") from error
        raise
    write_text(target, render_report(bundle))
    return target


def _check_free(bundle: Bundle, target: Path) -> None:
    """Raises UsageError where the report would replace a part of the bundle."""
    taken = [MANIFEST, *(artifact.path for artifact in bundle.manifest.artifacts)]
    place = target.resolve()
    folders = [(bundle.folder / name).resolve() for name in (EVIDENCE, RECEIPTS)]
    if place in [(bundle.folder / name).resolve() for name in taken] or any(place.is_relative_to(f) for f in folders):
        raise UsageError(
            f"{target} is a part of the bundle, not a place for its report", advice="give --output another name"
        )
    if target.is_dir():
        raise UsageError(f"{target} is a folder: a report is a file", advice=f"give --output {target / NAME}")


def render_report(bundle: Bundle) -> str:
    """The page's HTML. Raises as ``write_report``, but for writing."""
    jinja2 = require("jinja2", extra="report")
    found = read_findings(bundle)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["key"] = key
    environment.filters |= {"sentence": sentence, "heading": heading, "prose": prose}
    style, script = _text("drawing.css") + _text("report.css"), _text("report.js")
    sections = _arranged(tuple(_sections(found)))
    page: str = environment.get_template("report.html.j2").render(
        manifest=bundle.manifest,
        verdict=decide_verdict(found),
        figures=key_figures(found),
        sections=sections,
        pictures=any(isinstance(block, Pictures) for section in sections for block in section.blocks),
        style=Trusted(style),
        script=Trusted(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        version=__version__,
    )
    return page


def _sections(found: Findings) -> Iterator[Section]:
    from skdeploy.report.accuracy import accuracy_section
    from skdeploy.report.attention import attention_section
    from skdeploy.report.blame import blame_section
    from skdeploy.report.calibration import calibration_section
    from skdeploy.report.headroom import headroom_section
    from skdeploy.report.int8 import int8_section
    from skdeploy.report.line import line_section, provenance_section, reproduce_section
    from skdeploy.report.parity import parity_section
    from skdeploy.report.quality import quality_section
    from skdeploy.report.receipts import receipts_section

    if notes := _notes(found):
        yield Section("notes", "Notes", "", notes)
    yield line_section(found)
    yield parity_section(found)
    if found.quality is None or found.accuracy is not None:
        yield accuracy_section(found)
    if found.quality is not None:
        yield quality_section(found.quality)
    yield blame_section(found)
    yield int8_section(found)
    yield headroom_section(found)
    calibration = calibration_section(found)
    if calibration is not None:
        yield calibration
    yield receipts_section(found)
    yield attention_section(found)
    yield provenance_section(found)
    yield reproduce_section(found)


def _notes(found: Findings) -> tuple[Block, ...]:
    blocks: list[Block] = []
    if found.bundle.manifest.notes:
        blocks.append(Bullets(tuple(map(sentence, found.bundle.manifest.notes))))
    if found.unknown:
        blocks.append(Text(f"Not shown, since this report knows no such evidence: {', '.join(found.unknown)}.", "warn"))
    return tuple(blocks)


def _arranged(sections: Sequence[Section]) -> tuple[Section, ...]:
    """Sections with something to show, some of them folded; last, in one section, what could be measured as well."""
    absent = [section for section in sections if _is_absent(section)]
    shown = [_warned(_folded(s) if s.anchor in FOLDED else s) for s in sections if s not in absent]
    if not absent:
        return tuple(shown)
    blocks = tuple(block for section in absent for block in section.blocks)
    return (*shown, Section("absent", "Not in this report", "", blocks))


def _warned(section: Section) -> Section:
    """Warnings stand above what they concern."""
    blocks = sorted(section.blocks, key=lambda block: not (isinstance(block, Text) and block.tone == "warn"))
    return replace(section, blocks=tuple(blocks))


def _is_absent(section: Section) -> bool:
    """Whether a section only says that there is nothing. Evidence that no longer counts is something."""
    return bool(section.blocks) and all(isinstance(b, Absent) and not b.outdated for b in section.blocks)


def _folded(section: Section) -> Section:
    """Keep texts, findings and outdated results in sight; fold tables, facts and drawings."""
    seen = tuple(block for block in section.blocks if isinstance(block, Text | Finding | Absent))
    rest = tuple(block for block in section.blocks if block not in seen)
    fold = (Fold("Show the figures", rest),) if rest else ()
    return replace(section, blocks=(*seen, *fold))


def _shown(value: Any) -> Any:
    """Prepare a value for the template: text with its invisible characters shown, our own markup as it is."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The Content-Security-Policy source of an inline block with this text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

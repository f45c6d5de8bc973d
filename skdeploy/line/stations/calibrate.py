"""Calibration images to ranges; what the images are is audited on the way. Or the ranges of an earlier calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

from skdeploy.bundle import contents
from skdeploy.bundle.station_facts import RangesFacts
from skdeploy.core.files import digest_file
from skdeploy.core.memory import give_back
from skdeploy.core.options import NoOptions
from skdeploy.images.audit_report import audit_of
from skdeploy.line.calibration import CalibrationOptions, CalibrationSet
from skdeploy.line.station import CALIBRATION_TOOLS, Inputs, Station
from skdeploy.quant.methods import FEWEST_IMAGES
from skdeploy.quant.ranges import Ranges, load_ranges

if TYPE_CHECKING:
    from skdeploy.images.dataset import Dataset


@dataclass(frozen=True)
class Calibrate(Station[CalibrationOptions, RangesFacts]):
    """``data`` are the images that accuracy is measured on: the audit says which of them calibrate too."""

    images: CalibrationSet
    data: Dataset | None = None

    name, words, format, facts = "calibrate", "calibrate", "json", RangesFacts
    tools = CALIBRATION_TOOLS

    def output(self, inputs: Inputs) -> str:
        return contents.RANGES

    def sources(self, inputs: Inputs) -> Mapping[str, str]:
        data = {"data": self.data.digest} if self.data is not None else {}
        return {"images": self.images.dataset.digest} | data

    def settings(self, inputs: Inputs, options: CalibrationOptions) -> Mapping[str, JsonValue]:
        """Of a recipe, what it says."""
        algorithm = self.images.algorithm.model_dump(mode="json")
        return {"algorithm": algorithm, "number": self.images.asked, "name": self.images.dataset.name}

    def make(self, inputs: Inputs, options: CalibrationOptions, out: Path) -> RangesFacts:
        from skdeploy.images.duplicates import fingerprints
        from skdeploy.quant.calibrate import CalibrationSettings, calibrate

        give_back()  # what the trace and the simplification have left
        spec = inputs.spec
        ranges = calibrate(
            inputs.load(),
            inputs.artifacts["graph"].inputs,
            spec,
            self.images.dataset,
            CalibrationSettings(self.images.algorithm, self.images.asked, options.batch),
            evaluation=fingerprints(self.data, spec) if self.data is not None else None,
            progress=inputs.progress,
        )
        out.write_text(ranges.text(), encoding="utf-8")
        return facts_of(ranges, "calibrate")

    def notes(self, facts: RangesFacts) -> tuple[str, ...]:
        return calibration_notes(facts)


@dataclass(frozen=True)
class GivenRanges(Station[NoOptions, RangesFacts]):
    """A ranges file, read at once; whether it belongs to the network is checked where it is used.

    Raises CalibrationError for a file that is not there or holds no ranges.
    """

    file: Path
    ranges: Ranges = field(init=False)

    name, words, format, facts = "ranges", "ranges", "json", RangesFacts
    tools = ("skdeploy",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranges", load_ranges(self.file))

    def output(self, inputs: Inputs) -> str:
        return contents.RANGES

    def sources(self, inputs: Inputs) -> Mapping[str, str]:
        return {"file": digest_file(self.file)}

    def make(self, inputs: Inputs, options: NoOptions, out: Path) -> RangesFacts:
        out.write_text(self.ranges.text(), encoding="utf-8")
        return facts_of(self.ranges, "ranges")

    def notes(self, facts: RangesFacts) -> tuple[str, ...]:
        return calibration_notes(facts)


def facts_of(ranges: Ranges, station: Literal["calibrate", "ranges"]) -> RangesFacts:
    """Notes on ranges, measured here or given."""
    from skdeploy.quant.calibrate import dead_tensors

    choice = ranges.choice
    return RangesFacts(
        station=station,
        images=ranges.data.images,
        dataset=ranges.data.name,
        random=ranges.data.random,
        method=ranges.algorithm.method,
        chosen=str(choice.candidate) if choice is not None else "",
        scored_images=choice.scored if choice is not None else 0,
        tensors=len(ranges.tensors),
        dead_tensors=tuple(dead_tensors(ranges)),
        audit=audit_of(ranges.audit),
    )


def calibration_notes(facts: RangesFacts) -> tuple[str, ...]:
    """Warnings about the calibration images."""
    notes = facts.audit.warnings() if facts.audit else ()
    if facts.chosen and not facts.scored_images:
        images = "1 image is" if facts.images == 1 else f"{facts.images} images are"
        few = f"{images} too few to choose a method by, so {facts.chosen} is used"
        notes = (*notes, f"{few}; give {FEWEST_IMAGES} or more")
    dead = facts.dead_tensors
    if dead:
        more = f" and {len(dead) - 1} more" if len(dead) > 1 else ""
        notes = (
            *notes,
            f"zero on every calibration image: {dead[0]}{more}; its range is a default that every format can hold",
        )
    return tuple(f"calibration: {note}" for note in notes)

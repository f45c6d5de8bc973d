"""The audit of calibration images as the manifest keeps it, and its warnings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Final

from pydantic import Field, JsonValue, ValidationError

from skdeploy.core.errors import CalibrationError, first_problem
from skdeploy.core.spec import Frozen, SampleWord


class Unreadable(Frozen):
    """An image that was passed over, and why."""

    name: str
    reason: str


USUAL: Final = 100  # images; TensorRT's guide finds about 500 enough for networks of ImageNet's 1,000 classes
NOTABLE: Final = 0.05  # of the images: below that, an oddity of the set and not what the ranges are made from
MOVED: Final = 0.05  # of a threshold: 5 % more range costs 0.4 dB of SQNR, which is not noticed
ALPHA: Final = "alpha dropped"
FRAMES: Final = "first of several frames"
TURNED: Final = "EXIF orientation"
CLIPPED: Final = "with more than a quarter of the values at 255: overexposed, or on a white background"
ENLARGED: Final = "smaller than the card's resize: they are enlarged, and so smoother than in the field"
CONVERTED: Final = {
    ALPHA: "with transparency, which is dropped as training pipelines do: hidden pixels become visible",
    f"{TURNED} ignored": (
        "with an EXIF orientation, which is ignored as the loaders of timm and torchvision do; if your training code turned "
        'images upright, set exif = "apply" under [preprocess] in the card'
    ),
    f"{TURNED} applied": "turned upright by their EXIF orientation, as the card says",
}
NOISE: Final = "calibrated on random noise: good for timing only, not for accuracy; give images with --calib"
Names = Annotated[tuple[str, ...], Field(strict=False)]


class Found(Frozen):
    """How many images, and the first few by name."""

    count: int
    names: Names


class Pairs(Frozen):
    """How many images have a mate, and the first few with theirs."""

    count: int
    pairs: Annotated[tuple[Annotated[tuple[str, str], Field(strict=False)], ...], Field(strict=False)]


class ClassCoverage(Frozen):
    """How many of the network's classes have images, and how many the rarest and the commonest of these have.

    ``missing`` are the first without: names where the classes have them, numbers where they do not. It is empty where the
    labels are those of class folders that were not matched with the network's classes: then it is not known which are missing.
    """

    covered: int
    total: int
    fewest: int
    most: int
    missing: Names


class Overlap(Frozen):
    """Calibration images that are also among those which accuracy is measured on."""

    dataset: str
    images: int
    exact: Pairs
    near: Pairs


class TensorCoverage(Frozen):
    """A tensor whose threshold (its largest quantised magnitude) was ``early`` after 3/4 of the images, ``final`` after all."""

    name: str
    early: float
    final: float


class AuditReport(Frozen):
    """The calibration images. Counts are of the images used; ``asked`` is --calib-num, ``converted`` counts by what was done.

    ``clipped`` are images with more than a quarter of their values at 255; ``enlarged`` those smaller than the card's resize;
    ``near`` those that look like an earlier one, exact duplicates not among them; ``coverage`` the tensors whose thresholds
    were still moving in the last quarter of the images; ``notes``: those of the data set, on images that it does not have.
    """

    dataset: str
    random: bool
    asked: int
    used: int
    unreadable: Annotated[tuple[Unreadable, ...], Field(strict=False)]
    classes: ClassCoverage | None
    exact: Pairs
    near: Pairs
    overlap: Overlap | None
    constant: Found
    clipped: Found
    enlarged: Found
    converted: dict[str, int]
    coverage: Annotated[tuple[TensorCoverage, ...], Field(strict=False)] = ()
    notes: Names = ()
    sample: SampleWord = "image"

    def warnings(self) -> tuple[str, ...]:
        """Warnings about these images, one sentence each, the most serious first."""
        if self.random:
            return (NOISE,)
        return (*self.notes, *self._about_the_set(), *self._about_duplicates(), *self._about_images())

    def _counted(self, count: int) -> str:
        return f"{count} {self.sample}" + ("" if count == 1 else "s")

    def _about_the_set(self) -> Iterable[str]:
        if self.used < USUAL:
            yield (
                f"{self._counted(self.used)}: too few to cover what the network sees in the field; {USUAL} to 500 are usual"
            )
        if self.unreadable:
            first = self.unreadable[0]
            yield (
                f"left out {self._counted(len(self.unreadable))} that could not be read; first: {first.name}: {first.reason}"
            )
        if self.classes is not None and self.classes.covered < self.classes.total:
            absent, total = self.classes.total - self.classes.covered, self.classes.total
            few = f": {self._counted(self.used)} cannot cover them all" if self.used < total else ""
            named = f": {_first(self.classes.missing, absent)}" if self.classes.missing else ""
            yield f"{absent} of {total} classes have no {self.sample}{few}{named}"

    def _about_duplicates(self) -> Iterable[str]:
        if self.overlap is not None and (self.overlap.exact.count or self.overlap.near.count):
            exact, near = self.overlap.exact, self.overlap.near
            example = (exact.pairs or near.pairs)[0]
            yield (
                f"{self._counted(exact.count)} also in {self.overlap.dataset}, and {near.count} more nearly the same "
                f"(first: {example[0]} and {example[1]}): accuracy measured there will look too good"
            )
        for pairs, words, usual in ((self.exact, "the same", 0), (self.near, "nearly the same", NOTABLE * self.used)):
            if pairs.count > usual:
                first, second = pairs.pairs[0]
                yield f"{self._counted(pairs.count)} {words} as an earlier one (first: {second} and {first})"

    def _about_images(self) -> Iterable[str]:
        if self.constant.count:
            yield f"{self._counted(self.constant.count)} of one colour: {_first(self.constant.names, self.constant.count)}"
        for found, words in ((self.clipped, CLIPPED), (self.enlarged, ENLARGED)):
            if found.count > NOTABLE * self.used:
                yield f"{self._counted(found.count)} {words}; first: {found.names[0]}"
        for what, words in CONVERTED.items():
            if count := self.converted.get(what):
                yield f"{self._counted(count)} {words}"
        if self.coverage:
            most = max(self.coverage, key=_movement)
            yield (
                f"the thresholds of {len(self.coverage)} tensor(s) moved by more than {MOVED:.0%} in the last "
                f"quarter of the {self.sample}s (most: {most.name}, {most.early:.4g} to {most.final:.4g}): use more "
                f"{self.sample}s"
            )


def _movement(tensor: TensorCoverage) -> float:
    """Relative to the early threshold; infinite for one that was 0 and is not."""
    change = abs(tensor.final - tensor.early)
    if not change:
        return 0.0
    return change / abs(tensor.early) if tensor.early else float("inf")


def _first(names: tuple[str, ...], count: int) -> str:
    return ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) else "")


def audit_of(content: Mapping[str, JsonValue]) -> AuditReport | None:
    """The audit in a ranges file, None where it has none. Raises CalibrationError where it is not one of skdeploy's."""
    if not content:
        return None
    try:
        return AuditReport.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise CalibrationError(
            f"the audit in the ranges file was not written by skdeploy: {first_problem(error)}",
            advice="calibrate again, or restore the file",
        ) from error

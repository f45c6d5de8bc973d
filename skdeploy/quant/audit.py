"""What the calibration images were, for the manifest, and what is wrong with them, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Final

import numpy as np
from pydantic import Field

from skdeploy.quant.dataset import Dataset
from skdeploy.quant.duplicates import Fingerprints, Pair, exact_pairs, near_pairs
from skdeploy.quant.images import Crop
from skdeploy.quant.reading import Unreadable
from skdeploy.spec import Frozen, ModelSpec

SHOWN: Final = 5  # names in the report: enough to go and look
USUAL: Final = 100  # images; TensorRT's guide finds about 500 enough for networks of ImageNet's 1,000 classes
NOTABLE: Final = 0.05  # of the images: below that, an oddity of the set and not what the ranges are made from
MOVED: Final = 0.05  # of a threshold: 5 % more range costs 0.4 dB of SQNR, which is not noticed
LAST: Final = 0.25  # of the images: what the thresholds before them are compared after

# Of the values at 255. Dark backgrounds are common and lose nothing, so 0 does not count. Fashion-MNIST, whose every image is
# stretched to 255, has 10 % at most, 16 photographs 0.4 %.
CLIPPED: Final = 0.25

ALPHA: Final = "alpha dropped"
FRAMES: Final = "first of several frames"
TURNED: Final = "EXIF orientation"
NOISE: Final = "calibrated on random noise: its ranges are meaningless for accuracy, fit for timing only; give --calib"

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

    def warnings(self) -> tuple[str, ...]:
        """What makes these images a poor guide to the field, a sentence each; most serious first."""
        if self.random:
            return (NOISE,)
        return (
            *self.notes,
            *self._count_warnings(),
            *self._duplicate_warnings(),
            *self._image_warnings(),
            *self._coverage_warnings(),
        )

    def _count_warnings(self) -> Iterable[str]:
        if self.used < USUAL:
            yield (
                f"{_images(self.used)}: ranges will not cover what the network sees in the field; {USUAL} to 500 is usual"
            )
        if self.unreadable:
            first = self.unreadable[0]
            yield f"{_images(len(self.unreadable))} could not be read and were left out, first {first.name}: {first.reason}"
        if self.classes is None or self.classes.covered == self.classes.total:
            return
        absent = self.classes.total - self.classes.covered
        named = f": {_first(self.classes.missing, absent)}" if self.classes.missing else ""
        if self.used < self.classes.total:
            yield f"{absent} of {self.classes.total} classes have no image: {self.used} images cannot cover them all{named}"
        else:
            yield f"{absent} of {self.classes.total} classes have no image{named}"

    def _duplicate_warnings(self) -> Iterable[str]:
        if self.overlap is not None and (self.overlap.exact.count or self.overlap.near.count):
            exact, near = self.overlap.exact, self.overlap.near
            example = (exact.pairs or near.pairs)[0]
            yield (
                f"shares {_images(exact.count)} with {self.overlap.dataset}, and {near.count} more nearly "
                f"(first: {example[0]} and {example[1]}): the accuracy measured on it is too good"
            )
        if self.exact.count:
            first, second = self.exact.pairs[0]
            yield f"{_images(self.exact.count)} the same as an earlier one (first: {second} and {first})"
        if self.near.count > NOTABLE * self.used:
            first, second = self.near.pairs[0]
            yield f"{_images(self.near.count)} nearly the same as an earlier one (first: {second} and {first})"

    def _image_warnings(self) -> Iterable[str]:
        if self.constant.count:
            yield f"{_images(self.constant.count)} of one colour: {_first(self.constant.names, self.constant.count)}"
        if self.clipped.count > NOTABLE * self.used:
            yield (
                f"{_images(self.clipped.count)} with more than a quarter of the values at 255: overexposed, or on white; "
                f"first {self.clipped.names[0]}"
            )
        if self.enlarged.count > NOTABLE * self.used:
            yield (
                f"{_images(self.enlarged.count)} smaller than the card's resize and enlarged, so smoother than in the field; "
                f"first {self.enlarged.names[0]}"
            )
        if self.converted.get(ALPHA):
            yield (
                f"{_images(self.converted[ALPHA])} with transparency, which is dropped as training pipelines do: "
                "what is hidden below it is seen"
            )
        if turned := self.converted.get(f"{TURNED} ignored"):
            yield (
                f"{_images(turned)} with an EXIF orientation, which is ignored as the loaders of timm and torchvision do; if "
                'the training turned them upright, say exif = "apply" under [preprocess] in the card'
            )
        if turned := self.converted.get(f"{TURNED} applied"):
            yield f"{_images(turned)} turned by their EXIF orientation, as the card says"

    def _coverage_warnings(self) -> Iterable[str]:
        if self.coverage:
            most = max(self.coverage, key=_movement)
            yield (
                f"the thresholds of {len(self.coverage)} tensor(s) moved by more than {MOVED:.0%} in the last quarter of the "
                f"images (most: {most.name}, {most.early:.4g} to {most.final:.4g}): more images would move them further"
            )


class Audit:
    """Fed with the crops as they stream to the observers; keeps 64 bytes and a name of each, not the pixels.

    ``labels`` of the data set make the report speak of classes; pass it through ``labels.as_the_network_counts`` first where
    that can be done, so that missing classes have names. ``asked`` is the number of images wanted, where there were fewer.
    """

    def __init__(self, dataset: Dataset, spec: ModelSpec, asked: int | None = None) -> None:
        self.dataset = dataset
        self.spec = spec
        self.asked = len(dataset) if asked is None else asked
        self.fingerprints = Fingerprints(dataset.name)
        self._unreadable: list[Unreadable] = []
        self._used: list[int] = []
        self._constant: list[str] = []
        self._clipped: list[str] = []
        self._enlarged: list[str] = []
        self._converted: Counter[str] = Counter()

    def skip(self, image: Unreadable) -> None:
        """Takes note of an image that was passed over: the ``on_unreadable`` of ``read_crops``."""
        self._unreadable.append(image)

    def add(self, index: int, crop: Crop) -> None:
        """Takes note of the image at this place of the data set."""
        name = self.dataset.name_of(index)
        self._used.append(index)
        self.fingerprints.add(crop.pixels, name)
        if (crop.pixels == crop.pixels[0, 0]).all():
            self._constant.append(name)
        if np.mean(crop.pixels == 255) > CLIPPED:
            self._clipped.append(name)
        if crop.scale > 1:
            self._enlarged.append(name)
        target = "L" if self.spec.input.channels == 1 else "RGB"
        if crop.mode != target:
            self._converted[f"{crop.mode} to {target}"] += 1
        if crop.orientation != 1:
            self._converted[f"{TURNED} {'ignored' if self.spec.preprocess.exif == 'ignore' else 'applied'}"] += 1
        self._converted.update({ALPHA: int(crop.alpha), FRAMES: int(crop.animated)})

    def finish(self, evaluation: Fingerprints | None = None, coverage: tuple[TensorCoverage, ...] = ()) -> AuditReport:
        """The report; ``evaluation`` are the images that accuracy is measured on, if any (``duplicates.fingerprints``)."""
        mine = self.fingerprints
        overlap = None
        if evaluation is not None:
            overlap = Overlap(
                dataset=evaluation.name,
                images=len(evaluation.names),
                exact=_pairs(exact_pairs(mine, evaluation), mine, evaluation),
                near=_pairs(near_pairs(mine, evaluation), mine, evaluation),
            )
        return AuditReport(
            dataset=self.dataset.name,
            random=self.dataset.random,
            asked=self.asked,
            used=len(self._used),
            unreadable=tuple(self._unreadable),
            classes=self._classes(),
            exact=_pairs(exact_pairs(mine), mine, mine),
            near=_pairs(near_pairs(mine), mine, mine),
            overlap=overlap,
            constant=_found(self._constant),
            clipped=_found(self._clipped),
            enlarged=_found(self._enlarged),
            converted={what: count for what, count in sorted(self._converted.items()) if count},
            coverage=coverage,
            notes=self.dataset.notes,
        )

    def _classes(self) -> ClassCoverage | None:
        if self.dataset.labels is None or not self._used:
            return None
        counts = Counter(self.dataset.labels[self._used].tolist())
        names = self.dataset.classes
        total = max(self.spec.network.classes, len(names), max(counts) + 1)
        missing = [number for number in range(total) if number not in counts]
        if not names:
            shown = tuple(map(str, missing[:SHOWN]))
        else:
            shown = tuple(names[number] for number in missing[:SHOWN]) if len(names) == total else ()
        return ClassCoverage(
            covered=len(counts), total=total, fewest=min(counts.values()), most=max(counts.values()), missing=shown
        )


def moved(early: Mapping[str, float], final: Mapping[str, float]) -> tuple[TensorCoverage, ...]:
    """The tensors whose threshold is more than 5 % from what it was after 3/4 of the images, most first."""
    every = [TensorCoverage(name=name, early=early[name], final=final[name]) for name in final]
    return tuple(sorted((tensor for tensor in every if _movement(tensor) > MOVED), key=_movement, reverse=True))


def _movement(tensor: TensorCoverage) -> float:
    """Relative to the early threshold; infinite for one that was 0 and is not."""
    change = abs(tensor.final - tensor.early)
    if not change:
        return 0.0
    return change / abs(tensor.early) if tensor.early else float("inf")


def _found(names: list[str]) -> Found:
    return Found(count=len(names), names=tuple(names[:SHOWN]))


def _pairs(pairs: list[Pair], images: Fingerprints, others: Fingerprints) -> Pairs:
    shown = tuple((images.names[pair.first], others.names[pair.second]) for pair in pairs[:SHOWN])
    return Pairs(count=len(pairs), pairs=shown)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _first(names: tuple[str, ...], count: int) -> str:
    return ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) else "")

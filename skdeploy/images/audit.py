"""Audit of the calibration images for the manifest, and its warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from skdeploy.core.spec import ModelSpec
from skdeploy.images.audit_report import (
    ALPHA,
    FRAMES,
    MOVED,
    TURNED,
    AuditReport,
    ClassCoverage,
    Found,
    Overlap,
    Pairs,
    TensorCoverage,
    Unreadable,
    _movement,
)
from skdeploy.images.dataset import Dataset
from skdeploy.images.decoding import Crop, mode_of
from skdeploy.images.duplicates import Fingerprints, Pair, exact_pairs, near_pairs
from skdeploy.images.samples import MODE

SHOWN: Final = 5  # names in the report: enough to go and look

# Of the values at 255. Dark backgrounds are common and lose nothing, so 0 does not count. Fashion-MNIST, whose every image is
# stretched to 255, has 10 % at most, 16 photographs 0.4 %.
CLIPPED: Final = 0.25


class Noted(BaseModel):
    """The things that an audit notes of images, by their places in the data set; ``converted`` counts them."""

    model_config = ConfigDict(extra="forbid", strict=True)
    used: list[int] = Field(default=[])
    unreadable: list[Unreadable] = Field(default=[])
    constant: list[int] = Field(default=[])
    clipped: list[int] = Field(default=[])
    enlarged: list[int] = Field(default=[])
    converted: dict[str, int] = Field(default={})


class Audit:
    """Fed with the crops as they stream to the observers; keeps 64 bytes and a few numbers of each, not the pixels.

    ``labels`` of the data set make the report speak of classes; pass it through ``labels.as_the_network_counts`` first where
    that can be done, so that missing classes have names. ``asked`` is the number of images wanted, where there were fewer.
    """

    def __init__(self, dataset: Dataset, spec: ModelSpec, asked: int | None = None) -> None:
        self.dataset = dataset
        self.spec = spec
        self.asked = len(dataset) if asked is None else asked
        self.fingerprints = Fingerprints(dataset.name)
        self.noted = Noted()

    def skip(self, image: Unreadable) -> None:
        """Takes note of an image that was passed over: the ``on_unreadable`` of ``read_crops``."""
        self.noted.unreadable.append(image)

    def add(self, index: int, crop: Crop) -> None:
        """Takes note of the image at this place of the data set."""
        noted = self.noted
        noted.used.append(index)
        self.fingerprints.add(crop.pixels, self.dataset.name_of(index))
        if crop.mode == MODE:
            if all((crop.pixels[field] == crop.pixels[field].flat[0]).all() for field in crop.pixels.dtype.names or ()):
                noted.constant.append(index)
            return
        if (crop.pixels == crop.pixels[0, 0]).all():
            noted.constant.append(index)
        if np.mean(crop.pixels == 255) > CLIPPED:
            noted.clipped.append(index)
        if crop.scale > 1:
            noted.enlarged.append(index)
        if crop.mode != mode_of(self.spec):
            self._convert(f"{crop.mode} to {mode_of(self.spec)}")
        if crop.orientation != 1:
            self._convert(f"{TURNED} {'ignored' if self.spec.preprocess.exif == 'ignore' else 'applied'}")
        self._convert(ALPHA, int(crop.alpha))
        self._convert(FRAMES, int(crop.animated))

    def extend(self, noted: Noted, arrays: Mapping[str, NDArray[Any]], near_bits: int) -> None:
        """Takes what another audit noted of images that come after these; ``arrays`` and ``near_bits``: its fingerprints.

        Raises ValueError or KeyError where they do not belong together.
        """
        self.fingerprints.extend(arrays, near_bits, [self.dataset.name_of(index) for index in noted.used])
        for mine, more in (
            (self.noted.used, noted.used),
            (self.noted.constant, noted.constant),
            (self.noted.clipped, noted.clipped),
            (self.noted.enlarged, noted.enlarged),
        ):
            mine.extend(more)
        self.noted.unreadable.extend(noted.unreadable)
        for what, count in noted.converted.items():
            self._convert(what, count)

    def _convert(self, what: str, count: int = 1) -> None:
        if count:
            self.noted.converted[what] = self.noted.converted.get(what, 0) + count

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
            used=len(self.noted.used),
            unreadable=tuple(self.noted.unreadable),
            classes=self._classes(),
            exact=_pairs(exact_pairs(mine), mine, mine),
            near=_pairs(near_pairs(mine), mine, mine),
            overlap=overlap,
            constant=self._found(self.noted.constant),
            clipped=self._found(self.noted.clipped),
            enlarged=self._found(self.noted.enlarged),
            converted=dict(sorted(self.noted.converted.items())),
            coverage=coverage,
            notes=self.dataset.notes,
            sample=self.dataset.word,
        )

    def _classes(self) -> ClassCoverage | None:
        if self.dataset.labels is None or not self.noted.used:
            return None
        counts = Counter(self.dataset.labels[self.noted.used].tolist())
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

    def _found(self, places: Sequence[int]) -> Found:
        return Found(count=len(places), names=tuple(self.dataset.name_of(place) for place in places[:SHOWN]))


def moved(early: Mapping[str, float], final: Mapping[str, float]) -> tuple[TensorCoverage, ...]:
    """The tensors whose threshold is more than 5 % from what it was after 3/4 of the images, most first."""
    every = [TensorCoverage(name=name, early=early[name], final=final[name]) for name in final]
    return tuple(sorted((tensor for tensor in every if _movement(tensor) > MOVED), key=_movement, reverse=True))


def _pairs(pairs: list[Pair], images: Fingerprints, others: Fingerprints) -> Pairs:
    shown = tuple((images.names[pair.first], others.names[pair.second]) for pair in pairs[:SHOWN])
    return Pairs(count=len(pairs), pairs=shown)

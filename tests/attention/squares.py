"""The experiment on squares of different brightness."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skdeploy.attention.enlarge import enlarged
from skdeploy.attention.experiment import Subject, measure
from skdeploy.attention.gates import find_gates
from skdeploy.attention.report import UnitAttention
from skdeploy.core.spec import ModelSpec
from skdeploy.images.decoding import crop_array
from tests.attention.networks import spec_of, square

SCALES = (1.0, 1.5, 2.0)

IMAGES = [square(4, value) for value in (255, 204, 102, 51)]


def run(*subjects: Subject, spec: ModelSpec | None = None, batch: int | None = None) -> UnitAttention:
    """The experiment on four squares of different brightness."""
    card = spec or spec_of()
    gates = find_gates(subjects[0].model)

    def read(scale: float) -> list[tuple[int, NDArray[np.uint8]]]:
        return [(index, crop_array(image, enlarged(card, scale)).pixels) for index, image in enumerate(IMAGES)]

    (tally,), images = measure(subjects, gates, card, read, SCALES, batch=batch)
    assert images == len(IMAGES)
    return tally.unit(card, "SK_2_1", [s.measured.name for s in subjects], {0: 1.0, 2: 2.0})

"""The pair that loses most, in pictures: one artifact's output beside that of the artifact it is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skdeploy.accuracy.measures import Rows
from skdeploy.accuracy.quality_rows import Measuring
from skdeploy.parity.tasks import task_of
from skdeploy.parity.worst_image import WorstImage


def worst_pair(measuring: Measuring, rows: Sequence[Rows]) -> WorstImage | None:
    """The pair with the largest drop of the first figure, of any artifact against the first. Both run it once more.

    None for a figure that is not a mean over pairs, where outputs cannot be seen, or where another bundle's have other names or
    shapes. ``rows``: (N, columns) of each artifact.
    """
    measure = measuring.measures[0]
    if not measure.is_mean or len(rows) < 2:
        return None
    drops = np.stack([measure.sign * (rows[0][:, 0] - other[:, 0]) for other in rows[1:]])
    n, index = np.unravel_index(int(drops.argmax()), drops.shape)
    (first, _), (second, _) = measuring.opened[0], measuring.opened[int(n) + 1]
    before, after = (measuring.outputs(at, [int(index)]) for at in (0, int(n) + 1))
    names = [output.name for output in first.spec.given]
    if any(name not in after or after[name].shape != before[name].shape for name in names):
        return None
    one, other = ({name: each[name] for name in names} for each in (before, after))
    pictures = task_of(first.spec).pictures(one, other, 0, first.spec)
    if pictures is None:
        return None
    image = measuring.pairs.name_of(int(index))
    return WorstImage(found=second.shown, against=first.shown, image=image, pictures=pictures)

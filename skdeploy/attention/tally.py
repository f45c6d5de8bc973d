"""From the attention of many images to curves: sums as images go by, and what the report says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from skdeploy.attention.gates import Attention, Gate
from skdeploy.attention.report import Activity, Agreement, Curve, Growth, Profile, UnitAttention, half_width
from skdeploy.core.architecture import DescribedSpec
from skdeploy.core.errors import IntegrityError
from skdeploy.core.spec import ModelSpec

Vector = NDArray[np.float64]

# A curve whose points differ by less is flat: rounding of float32 attention, and nothing to correlate.
FLAT: Final = 1e-6
CURVE_POINTS: Final = 3  # two points always lie on a line


class Tally:
    """The attention of one unit over images, scales and graphs; graph 0 is the one that the others are compared with.

    Kept: for each graph and scale, the sum over images (M, C), and of each image the mean over channels (M,).
    """

    def __init__(self, gate: Gate, graphs: int, scales: int) -> None:
        self.gate = gate
        shape = (graphs, scales, gate.branches, gate.channels)
        self._sums = np.zeros(shape)
        self._squares = np.zeros((graphs, gate.branches, gate.channels))  # at the first scale
        self._image_means: list[list[list[Attention]]] = [[[] for _ in range(scales)] for _ in range(graphs)]
        self._distance = np.zeros(graphs)
        self._values = 0

    def add(self, scale: int, attention: Sequence[Attention]) -> None:
        """Takes some images at the scale of this index: (N, M, C) of each graph."""
        for graph, values in enumerate(attention):
            self._sums[graph, scale] += values.sum(0)
            self._image_means[graph][scale].append(values.mean(2))
            self._distance[graph] += float(np.abs(values - attention[0]).sum())
            if scale == 0:
                self._squares[graph] += (values**2).sum(0)
        self._values += attention[0].size

    def unit(
        self, spec: ModelSpec, paper_name: str, graphs: Sequence[str], profiled: dict[int, float]
    ) -> UnitAttention:
        """Make the report; ``profiled`` are the scales, by index, whose channel profiles are wanted.

        Raises IntegrityError if the card has another number of branches than the graph.
        """
        labels, reference = branch_labels(spec, self.gate)
        # By graph, scale, image and branch.
        means = np.array([[np.concatenate(parts) for parts in scales] for scales in self._image_means])
        images = means.shape[2]
        profiles = self._sums / images
        curves: list[Curve] = []
        agreements: list[Agreement] = []
        for branch in (b for b in range(self.gate.branches) if b != reference):
            differences = means[..., branch] - means[..., reference]  # (graphs, scales, N)
            points = differences.mean(2)
            errors = differences.std(2, ddof=1) / np.sqrt(images)
            for graph, name in enumerate(graphs):
                curves.append(
                    Curve(
                        graph=name,
                        branch=branch,
                        differences=_rounded(points[graph]),
                        standard_errors=_rounded(errors[graph]),
                        growth=growth(differences[graph, 0], differences[graph, -1]),
                        profiles=tuple(
                            Profile(scale=scale, attention=_rounded(profiles[graph, index, branch]))
                            for index, scale in profiled.items()
                        ),
                    )
                )
                if graph:
                    agreements.append(
                        Agreement(
                            graph=name,
                            branch=branch,
                            correlation=correlation(points[0], points[graph]),
                            max_difference=float(np.max(np.abs(points[graph] - points[0]))),
                        )
                    )
        variances = np.maximum(self._squares / images - profiles[:, 0] ** 2, 0) * images / (images - 1)
        return UnitAttention(
            unit=self.gate.unit,
            paper_name=paper_name,
            channels=self.gate.channels,
            branches=labels,
            reference=reference,
            curves=tuple(curves),
            activity=tuple(
                Activity(
                    graph=name,
                    spread=float(np.sqrt(variances[graph]).mean()),
                    mean_abs_difference=float(self._distance[graph] / self._values),
                )
                for graph, name in enumerate(graphs)
            ),
            agreements=tuple(agreements),
        )


def growth(first: Vector, last: Vector) -> Growth:
    """The change of a number, (N,) before and (N,) after, of the same images in the same order."""
    change = last - first
    error = float(change.std(ddof=1) / np.sqrt(len(change)))
    return Growth(
        mean=float(change.mean()),
        standard_error=error,
        margin=half_width(len(change)) * error,
        share=float(np.mean(change > 0)),
    )


def correlation(first: Vector, second: Vector) -> float | None:
    """Pearson's, of two curves; None where it says nothing: fewer than three points, or a flat curve."""
    if len(first) < CURVE_POINTS or min(np.ptp(first), np.ptp(second)) < FLAT:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def branch_labels(spec: ModelSpec, gate: Gate) -> tuple[tuple[str, ...], int]:
    """Name the branches, and find which of them has the smallest effective kernel, ``k + (k - 1)(d - 1)``.

    Without a card nothing says which kernel is whose: they are called by number, and the first is the reference. Raises
    IntegrityError if the card has another number of branches.
    """
    if not isinstance(spec.network, DescribedSpec):
        return tuple(f"branch {index}" for index in range(gate.branches)), 0
    branches = spec.network.selective_kernel.branches
    if len(branches) != gate.branches:
        raise IntegrityError(
            f"the card {spec.name} has {len(branches)} branches, but {gate.unit} in the graph has {gate.branches}",
            advice="the bundle was changed after its export: export again",
        )
    effective = [branch.kernel + (branch.kernel - 1) * (branch.dilation - 1) for branch in branches]
    labels = [
        f"{size}x{size}"
        + (f" ({branch.kernel}x{branch.kernel}, dilation {branch.dilation})" if branch.dilation > 1 else "")
        for size, branch in zip(effective, branches, strict=True)
    ]
    if len(set(labels)) < len(labels):  # they differ in groups, or in nothing
        labels = [f"branch {index}: {label}" for index, label in enumerate(labels)]
    return tuple(labels), effective.index(min(effective))


def _rounded(values: Vector) -> tuple[float, ...]:
    """To 1e-9: far below float32's own rounding, and half the size in JSON."""
    return tuple(round(float(value), 9) for value in values)

"""The best of what was tried: the cheapest that keeps the budget; and the front, where nothing is both cheaper and safer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skdeploy.planning.recommend import WORTH
from skdeploy.tuning.error import ErrorReport
from skdeploy.tuning.report import Tried


def holds(row: Tried) -> bool:
    """Whether it keeps the budget; without one, each way does."""
    return row.pair is not None and row.pair.decision in ("pass", None)


def choose(judged: Sequence[Tried]) -> Tried:
    """Of those that keep the budget on the images that choose the cheapest, then the one with the highest SQNR. If none does,
    those that the images cannot decide on come before those beyond it, and SQNR alone decides.

    Predictions less than a tenth apart are equal: kernels differ from their peaks by more.
    """
    holding = [row for row in judged if holds(row)]
    if not holding:
        open_ones = [row for row in judged if row.pair is not None and row.pair.decision == "inconclusive"]
        return max(open_ones or judged, key=lambda row: row.sqnr_db)
    least = min(row.predicted_ms or 0.0 for row in holding)
    near = [row for row in holding if (row.predicted_ms or 0.0) <= least * (1 + WORTH)]
    return min(near, key=lambda row: (*_cost(row)[1:], -row.sqnr_db))


def marked_best_first(rows: Sequence[Tried], winner: Tried) -> list[Tried]:
    """All rows, best first: those that were judged, with the front and the winner marked, before the others."""
    judged = [row for row in rows if row.pair is not None]

    def beaten(row: Tried) -> bool:
        return any(
            all(one <= two for one, two in zip(_cost(other), _cost(row), strict=True))
            and _loss(other) <= _loss(row)
            and ((_cost(other), _loss(other)) != (_cost(row), _loss(row)) or other.sqnr_db > row.sqnr_db)
            for other in judged
        )

    marked = [
        row.model_copy(update={"on_front": row.pair is not None and not beaten(row), "chosen": row.name == winner.name})
        for row in rows
    ]
    return sorted(marked, key=lambda row: (not row.chosen, row.pair is None, not row.on_front, -row.sqnr_db))


def _cost(row: Tried) -> tuple[float, bool, float]:
    """Less is better: the predicted latency; FP32 beside INT8 is never faster than FP16; and what is not INT8."""
    return (row.predicted_ms or 0.0, row.candidate.fallback == "fp32", -row.int8_mac_share)


def _loss(row: Tried) -> float:
    """Less is better: the bound that the gate goes by."""
    assert row.pair is not None
    if isinstance(row.pair, ErrorReport):
        return -row.pair.low_db
    return row.pair.drop_high if np.isfinite(row.pair.drop_high) else 100.0

"""The task that the shapes of inputs and outputs suggest, where neither card nor user says it."""

from __future__ import annotations

from collections.abc import Sequence

from skdeploy.core.spec import CLASSIFICATION, TensorSpec
from skdeploy.parity.tasks import FEATURES, RAW


def inferred_task(outputs: Sequence[TensorSpec]) -> tuple[str, str]:
    """A task, and what made it the likely one, in words. ``outputs``: batch first."""
    ranks = {len(output.shape) for output in outputs}
    if ranks == {2} and len(outputs) == 1:
        return CLASSIFICATION, "one vector per image"
    if ranks == {4} and len(outputs) > 1:
        return FEATURES, f"{len(outputs)} maps"
    return RAW, "the shapes fit no other task"

"""A metric of the user's own may end its program: that ends no run of ours."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from skdeploy.accuracy.own_metric import OwnMetric
from skdeploy.core.errors import UsageError
from tests.refused import refused


def test_a_metric_that_exits_is_an_error_and_not_an_end_with_0() -> None:
    own = OwnMetric("mine:metric", "mine.py", lambda outputs, target: sys.exit(0), 1)
    with refused(UsageError, "--metric mine:metric failed on row 3: SystemExit: 0"):
        own.of({}, np.zeros(2), "row 3")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (10**400, "1000.*000"),
        (float("nan"), "nan"),
        (np.float32(np.inf), ".*inf.*"),
        (np.complex64(1j), "complex64"),
        (np.array("1.5"), "ndarray"),
        (np.array(None), "ndarray"),
        ([1.0], "list"),
    ],
    ids=repr,
)
def test_what_is_not_a_finite_number_is_refused(given: Any, said: str) -> None:
    own = OwnMetric("mine:metric", "mine.py", lambda outputs, target: given, 1)
    with refused(UsageError, f"--metric mine:metric returned {said} for row 3, not a finite number"):
        own.of({}, np.zeros(2), "row 3")


@pytest.mark.parametrize("given", [1, 1.0, True, np.float16(1), np.int64(1), np.array(1.0), np.bool_(True)], ids=repr)
def test_numbers_of_any_kind_are_taken(given: Any) -> None:
    assert OwnMetric("mine:metric", "mine.py", lambda outputs, target: given, 1).of({}, np.zeros(2), "row 3") == 1.0

"""A metric of the user's own may end its program: that ends no run of ours."""

from __future__ import annotations

import sys

import numpy as np

from skdeploy.accuracy.own_metric import OwnMetric
from skdeploy.core.errors import UsageError
from tests.refused import refused


def test_a_metric_that_exits_is_an_error_and_not_an_end_with_0() -> None:
    own = OwnMetric("mine:metric", "mine.py", lambda outputs, target: sys.exit(0), 1)
    with refused(UsageError, "--metric mine:metric failed on row 3: SystemExit: 0"):
        own.of({}, np.zeros(2), "row 3")

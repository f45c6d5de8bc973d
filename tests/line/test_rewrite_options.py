"""What the rewrites refuse before anything runs, and that both are off by default."""

from __future__ import annotations

from typing import Any

import pytest

from skdeploy.core.errors import UsageError
from skdeploy.core.options import words_of
from skdeploy.line.options import ExportOptions
from skdeploy.line.rewrites import REWRITES
from skdeploy.line.stations.average_pool import PoolOptions
from skdeploy.line.stations.regroup import RegroupOptions
from skdeploy.passes.trace_options import TraceOptions


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"rewrites": {"regroup": RegroupOptions(regroup=0)}}, "--regroup 0: must be at least 1 group"),
        ({"rewrites": {"regroup": RegroupOptions(regroup=-4)}}, "--regroup -4: must be at least 1 group"),
        (
            {
                "rewrites": {"average pool": PoolOptions(gap="average-pool")},
                "trace": TraceOptions(dynamic_size=True),
            },
            "--dynamic-size",
        ),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        ExportOptions(model="sknet50", **options).check()


def test_rewrites_are_off_by_default() -> None:
    assert not ExportOptions(model="sknet50").rewrites
    assert not any(list(words_of(rewrite.options())) for rewrite in REWRITES.values())

"""What the rewrites refuse before anything runs, and that both are off by default."""

from __future__ import annotations

from typing import Any

import pytest

from skdeploy.core.errors import UsageError
from skdeploy.line.options import ExportOptions
from skdeploy.passes.trace_options import TraceOptions


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"regroup": 0}, "--regroup 0: at least 1 group"),
        ({"regroup": -4}, "--regroup -4: at least 1 group"),
        ({"gap": "average-pool", "trace": TraceOptions(dynamic_size=True)}, "--dynamic-size"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        ExportOptions(model="sknet50", **options).check()


def test_rewrites_are_off_by_default() -> None:
    options = ExportOptions(model="sknet50")
    assert (options.regroup, options.gap) == (None, None)

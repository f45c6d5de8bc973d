"""The audit in a ranges file that came from somewhere else."""

from __future__ import annotations

import pytest

from skdeploy.core.errors import CalibrationError
from skdeploy.images.audit_report import audit_of


def test_no_audit_is_none() -> None:
    assert audit_of({}) is None


def test_an_audit_that_is_none_is_named_with_the_place() -> None:
    with pytest.raises(CalibrationError, match=r"not one of skdeploy's: dataset: Field required"):
        audit_of({"used": 3})

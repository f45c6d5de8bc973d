"""What tests of blame share: one thread, and copies of bundles to plant faults in."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skdeploy.core.spec import Precision
from tests.blame.faulty import bundle_of


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread: None) -> None:
    """For all tests of the folder."""


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a bundle, to be altered."""

    def copy(precision: Precision, **how: Any) -> Path:
        return Path(shutil.copytree(bundle_of(precision, **how), tmp_path / "bundle"))

    return copy

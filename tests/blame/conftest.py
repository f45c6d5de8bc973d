"""What tests of blame share: one thread, and copies of bundles to plant faults in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from skdeploy.core.spec import Precision
from tests.blame.faulty import bundle_of


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """For tiny networks, whose work is less than waking threads takes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a bundle, to be altered."""

    def copy(precision: Precision, **how: Any) -> Path:
        return Path(shutil.copytree(bundle_of(precision, **how), tmp_path / "bundle"))

    return copy

"""A runner that is reported and never run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from skdeploy.core.spec import Precision


def runner_of(name: str) -> Any:
    """What a report says of it."""
    artifact = SimpleNamespace(sha256="0" * 64)
    return SimpleNamespace(name=name, backend="onnxruntime", precision=Precision.FP32, artifact=artifact)

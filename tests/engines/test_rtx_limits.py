"""What TensorRT-RTX does not do: refused before it builds, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skdeploy import engines
from skdeploy.core.errors import EngineError, UsageError
from skdeploy.engines import _build
from skdeploy.engines.options import BatchProfile, BuildOptions

pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")

PROFILE = BatchProfile(1, 4, 8)


@pytest.mark.parametrize("option", [{"strip": True}, {"optimization_level": 5}, {"timing_cache": Path("cache.bin")}])
def test_what_the_compiler_does_not_take_is_refused_before_it_builds(option: Any, fp16: Path, plan: Path) -> None:
    phases: list[str] = []
    with pytest.raises(UsageError, match=r"TensorRT-RTX [\d.]+ does not take --"):
        engines.build(
            "tensorrt_rtx", fp16, plan, BuildOptions(PROFILE, **option), lambda phase, _: phases.append(phase)
        )
    assert phases == []
    assert not plan.exists()


def test_levels_give_the_same_plan_which_is_why_they_are_refused(
    fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should a later TensorRT-RTX heed them, this fails, and the table of options can take them."""
    monkeypatch.setattr(_build, "require_supported", lambda *_, **__: None)
    plans = []
    for level in (0, 5):
        path = tmp_path / f"{level}.engine"
        engines.build("tensorrt_rtx", fp16, path, BuildOptions(PROFILE, optimization_level=level), lambda *_: None)
        plans.append(np.frombuffer(path.read_bytes(), np.uint8))
    assert plans[0].size == plans[1].size
    # Twelve builds, of three levels by turns, gave two plans that differ in 32 bytes of 1,417,676, each with every level.
    assert np.count_nonzero(plans[0] != plans[1]) <= 64


def test_stripping_fails_ahead_of_time_which_is_why_it_is_refused(
    fp16: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_build, "require_supported", lambda *_, **__: None)
    with pytest.raises(EngineError, match="could not build"):
        engines.build("tensorrt_rtx", fp16, plan, BuildOptions(PROFILE, strip=True), lambda *_: None)

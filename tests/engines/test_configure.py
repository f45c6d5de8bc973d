"""Options reach the builder's configuration: TensorRT-RTX's, which has the API of TensorRT's even for what it does not do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from skdeploy.core.errors import DependencyError, EngineError
from skdeploy.devices.jetson import MemoryLimits
from skdeploy.engines._configure import configure
from skdeploy.engines._log import Log, capture
from skdeploy.engines.options import BatchProfile, BuildOptions

trt: Any = pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")

ONE = BatchProfile(1, 1, 1)
NO_LIMITS = MemoryLimits(None, None)
FLAGS = ("TF32", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "STRIP_PLAN", "REFIT_IDENTICAL", "REFIT", "GPU_FALLBACK")


@pytest.fixture
def made() -> Iterator[tuple[Any, Any, Log]]:
    with capture(trt) as (logger, log):
        builder = trt.Builder(logger)
        yield builder, builder.create_builder_config(), log


def flags(config: Any) -> set[str]:
    return {name for name in FLAGS if config.get_flag(trt.BuilderFlag.__members__[name])}


def test_by_default_nothing_is_asked_for_but_fp32_that_is_fp32(made: tuple[Any, Any, Log]) -> None:
    builder, config, _ = made
    level = config.builder_optimization_level
    before = config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)
    assert flags(config) == {"TF32"}
    configure(trt, builder, config, BuildOptions(ONE), (), NO_LIMITS)
    assert flags(config) == set()
    assert config.builder_optimization_level == level
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == before
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"version_compatible": True}, {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}),
        ({"strip": True}, {"STRIP_PLAN", "REFIT_IDENTICAL"}),
    ],
)
def test_an_option_sets_its_flags(given: dict[str, bool], expected: set[str], made: tuple[Any, Any, Log]) -> None:
    builder, config, _ = made
    configure(trt, builder, config, BuildOptions(ONE, **given), (), NO_LIMITS)  # type: ignore[arg-type]  # of one type
    assert flags(config) == expected


def test_levels_memory_limits_and_profiles_are_set(made: tuple[Any, Any, Log]) -> None:
    builder, config, _ = made
    profiles: Any = tuple({"images": ((batch, 3, 8, 8),) * 3} for batch in (1, 64))
    limits = MemoryLimits(3 << 20, 4 << 20)
    for level in (0, 5):
        configure(trt, builder, config, BuildOptions(ONE, optimization_level=level), profiles, limits)
        assert config.builder_optimization_level == level
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 3 << 20
    assert config.get_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM) == 4 << 20
    assert config.num_optimization_profiles == 4  # two each time


def test_a_limit_that_is_quietly_not_taken_is_an_error(made: tuple[Any, Any, Log]) -> None:
    """3 MiB is no power of two."""
    builder, config, _ = made
    with pytest.raises(EngineError, match="refuses a limit of 3145728 bytes for TACTIC_DRAM"):
        configure(trt, builder, config, BuildOptions(ONE), (), MemoryLimits(None, 3 << 20))


def test_a_dla_that_is_not_there_is_told(made: tuple[Any, Any, Log]) -> None:
    builder, config, _ = made
    with pytest.raises(DependencyError, match="this machine has no DLA core 0: it has no DLA"):
        configure(trt, builder, config, BuildOptions(ONE, dla_core=0), (), NO_LIMITS)


def test_a_hardware_level_reaches_the_module(made: tuple[Any, Any, Log]) -> None:
    """TensorRT-RTX takes none, and says so: which is how it shows that it was asked."""
    builder, config, log = made
    configure(trt, builder, config, BuildOptions(ONE, hardware_compatible="ampere+"), (), NO_LIMITS)
    assert [warning.text for warning in log.warnings] == [
        "setHardwareCompatibilityLevel() is unsupported in TensorRT-RTX."
    ]

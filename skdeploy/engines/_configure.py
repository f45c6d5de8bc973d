"""From ``BuildOptions`` to calls of TensorRT's builder configuration. The module has them all: ``options.py`` saw to it."""

from __future__ import annotations

from typing import Final, cast

from skdeploy import engines
from skdeploy.core.errors import DependencyError, EngineError, UsageError
from skdeploy.devices.jetson import MemoryLimits
from skdeploy.engines._api import Builder, BuilderConfig, Compiler, TargetsCapabilities, TimingCache
from skdeploy.engines.options import BuildOptions, HardwareCompatible

Shape = tuple[int, ...]
Shapes = dict[str, tuple[Shape, Shape, Shape]]  # the (min, opt, max) shapes of each input

_HARDWARE: Final[dict[HardwareCompatible, str]] = {
    "none": "NONE",
    "ampere+": "AMPERE_PLUS",
    "same-cc": "SAME_COMPUTE_CAPABILITY",
}


def configure(
    trt: Compiler,
    builder: Builder,
    config: BuilderConfig,
    options: BuildOptions,
    profiles: tuple[Shapes, ...],
    limits: MemoryLimits,
) -> None:
    """Sets everything but the progress monitor and the timing cache. Raises UsageError, DependencyError, EngineError."""
    flags = trt.BuilderFlag.__members__
    # FP32 in the graph means FP32: TF32, on by default, keeps 10 bits of the mantissa.
    config.clear_flag(flags["TF32"])
    # The inspector then tells each layer's types, which is how a plan's precision is proven.
    config.profiling_verbosity = trt.ProfilingVerbosity.__members__["DETAILED"]
    _limit_memory(trt, config, "WORKSPACE", limits.workspace_bytes)
    _limit_memory(trt, config, "TACTIC_DRAM", limits.tactic_bytes)
    _add_profiles(trt, builder, config, profiles)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(flags["VERSION_COMPATIBLE"])
        # The lean runtime inside a plan is native code that a runtime must be allowed to run: skdeploy allows none.
        config.set_flag(flags["EXCLUDE_LEAN_RUNTIME"])
    if options.hardware_compatible != "none":
        level = _HARDWARE[options.hardware_compatible]
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.__members__[level]
    if options.strip:
        config.set_flag(flags["STRIP_PLAN"])
        config.set_flag(flags["REFIT_IDENTICAL"])
    if options.dla_core is not None:
        _use_dla(trt, builder, config, options.dla_core, fallback=options.dla_fallback)
    if options.compute_capabilities:
        _target(trt, config, options.compute_capabilities)


def tactic_memory(count: int) -> int:
    """The largest power of two that is at most ``count`` bytes: the only sizes that TensorRT takes for TACTIC_DRAM."""
    return 1 << (count.bit_length() - 1)


def _limit_memory(trt: Compiler, config: BuilderConfig, pool: str, limit: int | None) -> None:
    if limit is None:
        return
    member = trt.MemoryPoolType.__members__[pool]
    config.set_memory_pool_limit(member, limit)
    if config.get_memory_pool_limit(member) != limit:  # it returns nothing, and keeps the old limit if it refuses one
        raise EngineError(
            f"{trt.__name__} {trt.__version__} refuses a limit of {limit} bytes for {pool}",
            advice="give another limit, or leave it out",
        )


def _add_profiles(trt: Compiler, builder: Builder, config: BuilderConfig, profiles: tuple[Shapes, ...]) -> None:
    for shapes_of in profiles:
        profile = builder.create_optimization_profile()
        if profile is None:
            raise EngineError(
                f"{trt.__name__} cannot make an optimization profile", advice="free memory and build again"
            )
        for name, shapes in shapes_of.items():
            profile.set_shape(name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(
                f"{trt.__name__} refuses the profile {shapes_of}", advice="give a profile that fits the graph"
            )


def _use_dla(trt: Compiler, builder: Builder, config: BuilderConfig, core: int, *, fallback: bool) -> None:
    cores = builder.num_DLA_cores
    if core >= cores:
        has = f"it has cores 0 to {cores - 1}" if cores else "it has no DLA"
        raise DependencyError(
            f"this machine has no DLA core {core}: {has}",
            advice="a Jetson AGX Orin has cores 0 and 1; on other devices leave --dla-core out",
        )
    config.default_device_type = trt.DeviceType.__members__["DLA"]
    config.DLA_core = core
    flag = trt.BuilderFlag.__members__["GPU_FALLBACK"]
    (config.set_flag if fallback else config.clear_flag)(flag)


def _target(trt: Compiler, config: BuilderConfig, capabilities: tuple[str, ...]) -> None:
    known = known_capabilities(trt)
    unknown = [asked for asked in capabilities if asked not in known]
    if unknown or not known:
        raise UsageError(
            f"{trt.__name__} {trt.__version__} cannot build for compute capability "
            f"{', '.join(map(repr, unknown or capabilities))}",
            advice=f"it knows {', '.join(known)}"
            if known
            else "TensorRT builds only for its own GPU; use tensorrt_rtx",
        )
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        member = cast(TargetsCapabilities, trt).ComputeCapability.__members__["SM" + capability.replace(".", "")]
        if not config.set_compute_capability(member, index):
            raise EngineError(f"{trt.__name__} refuses compute capability {capability}", advice="leave it out")


def known_capabilities(trt: Compiler) -> tuple[str, ...]:
    """The compute capabilities that the module can be told to build for, like "8.9"; none where it builds for its own GPU."""
    if not engines.compiler(trt.__name__).AHEAD_OF_TIME:
        return ()
    members = cast(TargetsCapabilities, trt).ComputeCapability.__members__
    return tuple(f"{name[2:-1]}.{name[-1]}" for name in members if name.startswith("SM"))


def use_timing_cache(trt: Compiler, config: BuilderConfig, content: bytes) -> TimingCache:
    """Gives the builder what an earlier build measured, or an empty cache. It must live until the build is over.

    TensorRT only: TensorRT-RTX asks for a GPU when it is asked about timing caches. Raises EngineError if TensorRT refuses it.
    """
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        raise EngineError(
            f"{trt.__name__} {trt.__version__} refuses the timing cache",
            advice="delete it and build again: a new one is made",
        )
    return cache

"""Options of a build, and which compiler supports which: checked before anything is imported or built.

Nothing in this file touches a compiler: a version is a string, and the facts are in the compilers' own modules.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from pydantic import JsonValue, TypeAdapter

from skdeploy import engines
from skdeploy.core.errors import EngineError, UsageError
from skdeploy.core.options import Flag
from skdeploy.core.panel import Panel
from skdeploy.core.precision import PRECISIONS, Precision

HardwareCompatible = Literal["none", "ampere+", "same-cc"]
Sizes = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
MAX_LEVEL: Final = 5  # a higher one is taken for 5, see IBuilderConfig.builder_optimization_level
MAX_BATCH: Final = (1 << 31) - 1  # of a dimension: with more, a profile's set_shape raises, or takes the rest of 2^32
MIN_MEMORY_BYTES: Final = 1 << 20  # TensorRT refuses a pool of 1 KiB; with less than this no network was seen to build


@dataclass(frozen=True)
class BatchProfile:
    """The batch sizes that an engine takes, and the one it is best at: 1 <= min <= opt <= max < 2^31, or a UsageError."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise UsageError(
                f"batch profile {self.min}/{self.opt}/{self.max} is not 1 <= min <= opt <= max",
                advice="give the smallest, the most frequent and the largest batch, such as 1/8/32",
            )
        if self.max > MAX_BATCH:
            raise UsageError(f"batch profile {self}: TensorRT takes batches up to {MAX_BATCH}")

    def __str__(self) -> str:
        return f"{self.min}/{self.opt}/{self.max}"


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built. Raises UsageError for values that no compiler takes; ``require_supported`` knows each one's.

    ``profile``: None takes the graph's, see ``line/stations/engine.py``; compilers take no None. ``more_profiles`` follow it;
    a session runs each batch in the profile that suits it best. ``workspace_bytes`` limits a kernel's scratch memory, and
    ``tactic_bytes`` the memory of a kernel that is tried out. None is the module's default: all memory, or on a Jetson the
    shares of ``jetson.py``. ``compute_capabilities``, such as ("8.9",), are for TensorRT-RTX only; empty is its default, all
    but Turing (7.5). ``sizes``: min, opt and max (height, width) in pixels, for a graph of dynamic size; ``dimensions``:
    min, opt and max of other free dimensions, by name. ``optimization_level``: None is the module's default, 3.
    ``timing_cache``: a file, see ``timing_cache.py``. ``strip`` leaves the weights out; they come from the bundle's ONNX
    file when the plan is loaded, see ``refit.py``. ``dla_fallback`` lets layers that a DLA does not run go to the GPU;
    without it, such a layer fails the build.
    """

    panel: ClassVar[Panel] = Panel.ENGINE
    profile: BatchProfile | None = None
    workspace_bytes: int | None = None
    compute_capabilities: Annotated[
        tuple[str, ...],
        Flag(
            "Compute capability of a GPU that the TensorRT-RTX engine must run on, such as 8.9; repeatable.",
            ("--compute-capability",),
            metavar="X.Y",
        ),
    ] = ()
    sizes: Sizes | None = None
    dimensions: tuple[tuple[str, tuple[int, int, int]], ...] = ()
    more_profiles: tuple[BatchProfile, ...] = ()
    tactic_bytes: int | None = None
    optimization_level: Annotated[
        int | None,
        Flag("TensorRT's optimization level, from 0 (fast build) to 5 (fast engine).  [default: 3]", ("--opt-level",)),
    ] = None
    timing_cache: Annotated[
        Path | None, Flag("File for TensorRT's kernel timings; makes the next build faster.", metavar="FILE")
    ] = None
    version_compatible: Annotated[
        bool, Flag("Build an engine that later TensorRT versions can load; they need the lean runtime.")
    ] = False
    hardware_compatible: Annotated[
        HardwareCompatible, Flag("Build for other GPUs too: Ampere and later, or those of the same compute capability.")
    ] = "none"
    strip: Annotated[
        bool, Flag("Build without weights; they are read from the ONNX file when the engine is loaded.")
    ] = False
    dla_core: Annotated[int | None, Flag("Build for this DLA core of a Jetson AGX Orin.")] = None
    dla_fallback: Annotated[
        bool,
        Flag(
            "Let the GPU run layers that the DLA cannot run. Otherwise such a layer fails the build.",
            ("--dla-fallback/--no-dla-fallback",),
        ),
    ] = False

    def __post_init__(self) -> None:
        for wrong, message, advice in self._faults():
            if wrong:
                raise UsageError(message, advice=advice)

    def _faults(self) -> Iterator[tuple[bool, str, str]]:
        """Whether something is wrong, and then what, and what to do."""
        named, levels = self.compute_capabilities, f"from 0, the fastest build, to {MAX_LEVEL}, the slowest"
        yield (
            len(set(named)) < len(named),
            f"compute capabilities {', '.join(named)}: one is given twice",
            "give each once",
        )
        for what, limit in (("workspace", self.workspace_bytes), ("tactic memory", self.tactic_bytes)):
            small = limit is not None and limit < 1
            yield small, f"a {what} of {limit} bytes is too small", "give bytes, at least 1"
        tactic = f"a tactic memory of {self.tactic_bytes} bytes is too small to try out any kernel: the least is"
        few = self.tactic_bytes is not None and self.tactic_bytes < MIN_MEMORY_BYTES
        yield few, f"{tactic} {MIN_MEMORY_BYTES} bytes", "give more, or leave it out"
        for low, best, high in zip(*self.sizes, strict=True) if self.sizes else ():
            why = f"sizes {self.sizes} are not 1 <= min <= opt <= max in height and in width"
            yield (
                not 1 <= low <= best <= high,
                why,
                "give the smallest, the most frequent and the largest (height, width)",
            )
        twice = f"profiles {', '.join(map(str, self.profiles))}: one is given twice"
        yield len(set(self.profiles)) < len(self.profiles), twice, "give each profile once"
        level = self.optimization_level
        yield level is not None and not 0 <= level <= MAX_LEVEL, f"optimization level {level}: must be {levels}", ""
        why = "optimization level 0 times no kernel, so TensorRT ignores the timing cache"
        yield (
            self.timing_cache is not None and level == 0,
            why,
            "leave --timing-cache out, or choose a level from 1 to 5",
        )
        lonely = self.dla_core is None and self.dla_fallback
        yield lonely, "--dla-fallback requires --dla-core", "add --dla-core with the number of the core"
        if self.dla_core is not None:
            yield self.dla_core < 0, f"DLA core {self.dla_core}: must be at least 0", ""
            fixed = all(profile.min == profile.max for profile in self.profiles)
            why = "a DLA takes only static shapes: one profile with one batch, and images of one size"
            advice = "give one batch, such as --profile 8/8/8, and export without --dynamic-size"
            yield not fixed or len(self.profiles) > 1 or bool(self.sizes or self.dimensions), why, advice

    @property
    def profiles(self) -> tuple[BatchProfile, ...]:
        """All that are known, in the order of the engine's numbers."""
        return self.more_profiles if self.profile is None else (self.profile, *self.more_profiles)

    def record(self) -> dict[str, JsonValue]:
        """The options as a manifest has them: all that makes another engine. No path: of a cache, whether there was one."""
        given: dict[str, JsonValue] = {field.name: getattr(self, field.name) for field in fields(BuildOptions)}
        del given["dimensions"]
        dimensions: list[JsonValue] = [[name, list[JsonValue](sizes)] for name, sizes in self.dimensions]
        return given | {
            **({"dimensions": dimensions} if self.dimensions else {}),  # others have the record that they always had
            "profile": _batches(self.profile) if self.profile else None,
            "more_profiles": [_batches(profile) for profile in self.more_profiles],
            "sizes": [list[JsonValue](size) for size in self.sizes or ()],
            "compute_capabilities": list[JsonValue](self.compute_capabilities),
            "timing_cache": self.timing_cache is not None,
        }


def of_record(record: Mapping[str, JsonValue]) -> BuildOptions:
    """The options that a manifest has, but for a timing cache, which is not in the bundle; earlier versions had fewer.

    Raises pydantic's ValidationError for what no version writes.
    """
    known = {field.name for field in fields(BuildOptions)} - {"timing_cache"}
    given = {name: value for name, value in record.items() if name in known}
    given["profile"] = _profile(given.get("profile"))
    given["more_profiles"] = [_profile(profile) for profile in _list(given.get("more_profiles"))]
    given["sizes"] = given.get("sizes") or None
    return TypeAdapter(BuildOptions).validate_json(json.dumps(given))


def _profile(batches: JsonValue) -> JsonValue:
    return dict(zip(("min", "opt", "max"), batches, strict=False)) if isinstance(batches, list) else batches


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []


def _batches(profile: BatchProfile) -> list[JsonValue]:
    return [profile.min, profile.opt, profile.max]


OPTIONS: Final[Mapping[str, str]] = {
    "compute_capabilities": "--compute-capability",
    "tactic_bytes": "--tactic-memory",
    "optimization_level": "--opt-level",
    "timing_cache": "--timing-cache",
    "version_compatible": "--version-compatible",
    "ampere+": "--hardware-compatible ampere+",
    "same-cc": "--hardware-compatible same-cc",
    "strip": "--strip",
    "dla_core": "--dla-core",
}
"""The flags of what not every compiler takes: each says in ``TAKES`` and ``LACKS`` which, since when, and why not."""


def asked_for(options: BuildOptions) -> Iterator[str]:
    """Those of ``OPTIONS`` that are not at their defaults."""
    for name in OPTIONS:
        value = getattr(options, name, None)
        if options.hardware_compatible == name or not (value is None or value is False or value == ()):
            yield name


def require_taken(name: str, option: str, version: str = "") -> None:
    """Raises UsageError if the compiler ``name``, or this version of it, takes no such option, with the compilers that do."""
    facts, known = engines.compiler(name), map(engines.compiler, engines.COMPILERS)
    who, why = f"{facts.LABEL} {version}".rstrip(), f": {facts.LACKS[option]}" if option in facts.LACKS else ""
    since = {each.NAME: ".".join(map(str, each.TAKES[option])) for each in known if option in each.TAKES}
    if option not in facts.TAKES:
        takers = " or ".join(f"--target {taker}, which takes it from {oldest} on" for taker, oldest in since.items())
        advice = f"leave it out, or build with {takers}"
    elif version and version_numbers(version) < facts.TAKES[option]:
        advice = f"leave it out, or install {facts.LABEL} {since[name]} or newer"
    else:
        return
    raise UsageError(f"{who} does not take {OPTIONS[option]}{why}", advice=advice)


def require_supported(
    name: str,
    version: str,
    options: BuildOptions,
    *,
    on_jetson: bool,
    gpu: str | None,
    precision: Precision | None = None,
) -> None:
    """Raises UsageError for the first option that the compiler ``name`` of this version does not take on this machine, with
    the compiler and version that would. ``gpu`` is its compute capability; ``precision`` the graph's, None if not known.
    """
    for option in asked_for(options):
        require_taken(name, option, version)
    _require_hardware(options, on_jetson=on_jetson, gpu=gpu)
    if precision is None:
        return
    if options.dla_core is not None and not precision.dla:
        runs = [each for each in PRECISIONS.values() if each.dla]
        raise UsageError(
            f"a DLA runs {' and '.join(each.words for each in runs)}, but the graph is {precision.words}",
            advice=f"export with {' or '.join(each.flag for each in runs)}",
        )
    here = () if gpu is None or engines.compiler(name).AHEAD_OF_TIME else (gpu,)
    for capability in options.compute_capabilities or here:
        require_capability(precision, capability)


def require_capability(precision: Precision, capability: str, where: str = "that GPU") -> None:
    """Raises UsageError for a precision that GPUs of this compute capability do not have."""
    if not precision.runs_on(capability):
        raise UsageError(
            precision.lacking(where, capability), advice=f"export with {Precision.FP16.flag}, or for a newer device"
        )


def _require_hardware(options: BuildOptions, *, on_jetson: bool, gpu: str | None) -> None:
    """NVIDIA, "Engine Compatibility": no level on JetPack; HardwareCompatibilityLevel: from Ampere, or from Turing on."""
    level = options.hardware_compatible
    if level == "none":
        return
    if on_jetson:
        raise UsageError(
            f"--hardware-compatible {level} is not supported on Jetson",
            advice="build on each kind of Jetson: an engine is for the module that built it",
        )
    oldest = {"ampere+": (8, 0), "same-cc": (7, 5)}[level]
    if gpu is not None and version_numbers(gpu) < oldest:
        raise UsageError(
            f"--hardware-compatible {level} needs a GPU of compute capability {'.'.join(map(str, oldest))} or "
            f"newer, but this one has {gpu}",
            advice="leave it out, or build on a newer GPU",
        )


def version_numbers(version: str) -> tuple[int, ...]:
    """ "10.13.0.35" as numbers, up to the first part that is not a number. Raises EngineError for a version that begins with
    none.
    """
    numbers: list[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    if not numbers:
        raise EngineError(
            f"a compiler reports the version {version!r}, which is not a release", advice="install a released version"
        )
    return tuple(numbers)

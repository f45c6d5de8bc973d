"""Builds a plan from an ONNX file: one builder for TensorRT (10.x, 11.x) and TensorRT-RTX, given the imported module.

The network is always strongly typed: a tensor has the type that the graph gives it, in every version, and no builder
flag changes it. Timing caches are never touched: TensorRT-RTX has none, and asks for a GPU when it is asked about
them.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from skdeploy.backends import cuda
from skdeploy.engines._api import (
    Builder,
    BuilderConfig,
    Compiler,
    HostMemory,
    Network,
    TargetsCapabilities,
    Tensor,
    dtype_name,
)
from skdeploy.engines._log import Log, capture
from skdeploy.engines._progress import Progress, interrupts_kept, progress_monitor
from skdeploy.errors import EngineError, UsageError
from skdeploy.spec import Frozen

Shape = tuple[int, ...]
MAX_ERRORS_SHOWN = 5
_TURING = "7.5"  # TensorRT-RTX builds for Turing only where it is named, see _runs_on
_SIZES = ("height", "width")  # the names that graph/trace.py gives to dynamic dimensions, in the order of `sizes`


@dataclass(frozen=True)
class BatchProfile:
    """The batch sizes that an engine takes, and the one it is best at: 1 <= min <= opt <= max, or a UsageError."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise UsageError(
                f"batch profile {self.min}/{self.opt}/{self.max} is not 1 <= min <= opt <= max",
                advice="give the smallest, the most frequent and the largest batch, as 1/8/32",
            )


@dataclass(frozen=True)
class BuildOptions:
    """``workspace_bytes`` limits the scratch memory on the GPU; None is the module's default, all of it.

    ``compute_capabilities``, like ("8.9",), are TensorRT-RTX's only; none means its default, all but Turing (7.5).
    ``sizes`` are the min, opt and max (height, width) in pixels, for a graph whose height and width are dynamic. Raises
    UsageError.
    """

    profile: BatchProfile
    workspace_bytes: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None = None

    def __post_init__(self) -> None:
        if len(set(self.compute_capabilities)) < len(self.compute_capabilities):
            raise UsageError(
                f"compute capabilities {self.compute_capabilities} name one twice", advice="name each once"
            )
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise UsageError(
                f"a workspace of {self.workspace_bytes} bytes is too small", advice="give bytes, at least 1"
            )
        for side in zip(*self.sizes, strict=True) if self.sizes else ():
            if not 1 <= side[0] <= side[1] <= side[2]:
                raise UsageError(
                    f"sizes {self.sizes} are not 1 <= min <= opt <= max in height and in width",
                    advice="give the smallest, the most frequent and the largest (height, width)",
                )


class EngineReport(Frozen):
    """What was built.

    ``profile`` has the (min, opt, max) shapes of each input; memory is the device's, None where the log told none.
    ``layer_types`` counts the outputs of the network definition's layers by dtype: what the graph asked for, not yet
    a proof of what the plan does. ``log_warnings`` are those that leave all types as they are; the others fail the
    build.
    """

    compiler: str
    version: str
    plan_bytes: int
    activation_memory_bytes: int | None
    weights_memory_bytes: int | None
    runs_on: tuple[str, ...]
    profile: dict[str, tuple[Shape, Shape, Shape]]
    layers: int
    layer_types: dict[str, int]
    log_warnings: tuple[str, ...]
    seconds: float


def build(
    trt: Compiler, onnx_path: Path, plan_path: Path, options: BuildOptions, on_progress: Callable[[str, float], None]
) -> EngineReport:
    """Builds ``onnx_path`` and writes the plan to ``plan_path``, a temporary name that the caller renames.

    ``on_progress(phase, fraction)`` is called from the builder with fractions from 0 to 1, never falling within a
    phase; phases nest, and a name may start again. What it raises, KeyboardInterrupt included, cancels the build and
    is raised from here.

    Raises UsageError for options that do not fit the graph or the compiler; EngineError for a graph that the parser
    refuses or would build with other types than it says, and for a build that fails; OSError if the plan cannot be
    written.
    """
    started = time.monotonic()
    progress = Progress(on_progress)
    with capture(trt) as (logger, log), interrupts_kept(progress):
        plan, network_facts = _plan(trt, logger, log, onnx_path, options, progress)
    with plan_path.open("wb") as file:
        file.write(memoryview(plan))
    return EngineReport(
        compiler=trt.__name__,
        version=trt.__version__,
        plan_bytes=plan.nbytes,
        activation_memory_bytes=log.memory_bytes.get("activation"),
        weights_memory_bytes=log.memory_bytes.get("weights"),
        runs_on=(_runs_on(trt, options),),
        profile=network_facts.profile,
        layers=network_facts.layers,
        layer_types=network_facts.layer_types,
        log_warnings=tuple(dict.fromkeys(map(str, log.warnings))),
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class _NetworkFacts:
    profile: dict[str, tuple[Shape, Shape, Shape]]
    layers: int
    layer_types: dict[str, int]


def _plan(
    trt: Compiler, logger: object, log: Log, onnx_path: Path, options: BuildOptions, progress: Progress
) -> tuple[HostMemory, _NetworkFacts]:
    """The plan in memory. The builder, its network and its copy of the weights are freed on return."""
    builder = _builder(trt, logger, log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.__members__["STRONGLY_TYPED"]))
    _parse(trt, network, logger, log, onnx_path)
    progress.check()
    _require_types_of_graph(trt, network, onnx_path)
    facts = _NetworkFacts(
        {tensor.name: _profile_shapes(tensor, options, onnx_path) for tensor in _inputs(network)},
        network.num_layers,
        _layer_types(network),
    )
    config = builder.create_builder_config()
    _configure(trt, builder, config, options, facts)
    config.progress_monitor = monitor = progress_monitor(trt, progress)
    plan = builder.build_serialized_network(network, config)
    config.progress_monitor = None
    del monitor  # alive until here: TensorRT only borrows it
    progress.check()
    _refuse_type_changes(trt, log, onnx_path)
    if plan is None:
        raise EngineError(
            f"{trt.__name__} {trt.__version__} could not build {onnx_path}: {log.reasons()}",
            advice="the reason is the compiler's own; a smaller profile or workspace, or another precision, may help",
        )
    return plan, facts


def _builder(trt: Compiler, logger: object, log: Log) -> Builder:
    try:
        return trt.Builder(logger)
    except TypeError as error:  # pybind11's word for a factory that returned null
        raise EngineError(
            f"{trt.__name__} {trt.__version__} cannot make a builder on this machine: {log.reasons()}",
            advice="check the NVIDIA driver with nvidia-smi, and that it is new enough for this TensorRT",
        ) from error


def _parse(trt: Compiler, network: Network, logger: object, log: Log, onnx_path: Path) -> None:
    """Fills ``network`` from the file. Raises EngineError with the parser's errors, or its warnings about types."""
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(onnx_path))
    log.parsed()
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not parsed or errors:
        shown = "\n".join(
            f"  {_where(error.node_name(), error.node_operator())}: "
            f"{_explain(error.desc(), error.node_operator(), error.func())}"
            for error in errors[:MAX_ERRORS_SHOWN]
        )
        more = f"\n  and {len(errors) - MAX_ERRORS_SHOWN} more" if len(errors) > MAX_ERRORS_SHOWN else ""
        raise EngineError(
            f"{trt.__name__} {trt.__version__} refuses {onnx_path}:\n{shown or '  ' + log.reasons()}{more}",
            advice="change these nodes in the network or in the pass that made them; --target onnx stops at ONNX",
        )
    if network.num_outputs == 0:  # the parser accepts an empty file, and some that are no ONNX at all
        raise EngineError(
            f"{onnx_path} holds no graph: it has no outputs", advice="the file is empty or no ONNX; export again"
        )
    _refuse_type_changes(trt, log, onnx_path)


def _where(node: str, operator: str) -> str:
    return f"node {node!r} ({operator})" if node else "no node, the file or the graph's own inputs and weights"


def _explain(description: str, operator: str, function: str) -> str:
    """A parser error in one line. The parser's whole reason for an operator that it lacks is the word "false"."""
    lines = [line for line in description.splitlines() if "catchCudaError" not in line]
    reason = " ".join(lines).removeprefix("Assertion failed: ")
    return f"the operator {operator} is not supported" if reason == "false" and operator else f"{reason} [{function}]"


def _refuse_type_changes(trt: Compiler, log: Log, onnx_path: Path) -> None:
    changes = log.type_warnings()
    if changes:
        shown = "\n".join(f"  {change}" for change in changes[:MAX_ERRORS_SHOWN])
        raise EngineError(
            f"{trt.__name__} {trt.__version__} would build {onnx_path} with other types than the graph says:\n{shown}",
            advice="give the graph types that TensorRT takes: symmetric INT8, zero points of 0, equal types",
        )


def _require_types_of_graph(trt: Compiler, network: Network, onnx_path: Path) -> None:
    """The network's inputs and outputs have the file's dtypes. The parser turns DOUBLE into FLOAT without a word."""
    import onnx

    graph = onnx.load(onnx_path, load_external_data=False).graph
    elements = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]}
    tensors = _inputs(network) + [network.get_output(index) for index in range(network.num_outputs)]
    for tensor in tensors:
        wanted = onnx.helper.tensor_dtype_to_np_dtype(elements[tensor.name]).name
        if dtype_name(tensor.dtype) != wanted:
            raise EngineError(
                f"{trt.__name__} {trt.__version__} makes {tensor.name!r} of {onnx_path} {dtype_name(tensor.dtype)}, "
                f"the graph says {wanted}",
                advice="export the network with float32 or float16 inputs and outputs",
            )


def _inputs(network: Network) -> list[Tensor]:
    return [network.get_input(index) for index in range(network.num_inputs)]


def _layer_types(network: Network) -> dict[str, int]:
    counts: dict[str, int] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for output in range(layer.num_outputs):
            name = dtype_name(layer.get_output(output).dtype)
            counts[name] = counts.get(name, 0) + 1
    return counts


def _profile_shapes(tensor: Tensor, options: BuildOptions, onnx_path: Path) -> tuple[Shape, Shape, Shape]:
    """The min, opt and max shape of an input: fixed sizes as they are, the others from the options. Raises
    UsageError.
    """
    shape = tuple(tensor.shape)
    choices: list[tuple[int, int, int]] = []
    for axis, size in enumerate(shape):
        offered = _offered(tensor, axis, options)
        if size < 0 and offered is None:
            raise UsageError(
                f"input {tensor.name!r} of {onnx_path} has shape {shape}: dimension {axis} has no profile",
                advice="give sizes (--dynamic-size) for a dynamic height or width; export others with fixed sizes",
            )
        if size >= 0 and offered is not None and not offered[0] <= size <= offered[2]:
            raise UsageError(
                f"input {tensor.name!r} of {onnx_path} has the fixed size {size} in dimension {axis}, "
                f"outside the profile {offered[0]}/{offered[1]}/{offered[2]}",
                advice="export with a dynamic batch or size, or give a profile that holds the fixed one",
            )
        choices.append((size, size, size) if size >= 0 or offered is None else offered)
    if options.sizes is not None and -1 not in shape[1:]:
        raise UsageError(
            f"input {tensor.name!r} of {onnx_path} has the fixed size {shape[1:]}: there is no height or width to choose",
            advice="leave the sizes out, or export with a dynamic size (--dynamic-size)",
        )
    low, best, high = (tuple(choice[which] for choice in choices) for which in range(3))
    return low, best, high


def _offered(tensor: Tensor, axis: int, options: BuildOptions) -> tuple[int, int, int] | None:
    """What the options offer for a dimension: the batch, which is the first, or a height or width, told by its name."""
    if axis == 0:
        return options.profile.min, options.profile.opt, options.profile.max
    name = tensor.get_dimension_name(axis)
    if options.sizes is None or name not in _SIZES:
        return None
    low, best, high = (size[_SIZES.index(name)] for size in options.sizes)
    return low, best, high


def _configure(
    trt: Compiler, builder: Builder, config: BuilderConfig, options: BuildOptions, facts: _NetworkFacts
) -> None:
    # FP32 in the graph means FP32: TF32, on by default, keeps 10 bits of the mantissa.
    config.clear_flag(trt.BuilderFlag.__members__["TF32"])
    # The inspector then tells each layer's types, which is how a plan's precision is proven.
    config.profiling_verbosity = trt.ProfilingVerbosity.__members__["DETAILED"]
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.__members__["WORKSPACE"], options.workspace_bytes)
    profile = builder.create_optimization_profile()
    for name, shapes in facts.profile.items():
        profile.set_shape(name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(
            f"{trt.__name__} refuses the profile {facts.profile}", advice="give a profile that fits the graph"
        )
    if options.compute_capabilities:
        known = known_capabilities(trt)
        unknown = [asked for asked in options.compute_capabilities if asked not in known]
        if unknown or not known:
            raise UsageError(
                f"{trt.__name__} {trt.__version__} cannot be told to build for compute capability "
                f"{', '.join(unknown or options.compute_capabilities)}",
                advice=f"known: {', '.join(known)}" if known else "TensorRT builds for its own GPU; use tensorrt_rtx",
            )
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, capability in enumerate(options.compute_capabilities):
            member = cast(TargetsCapabilities, trt).ComputeCapability.__members__["SM" + capability.replace(".", "")]
            if not config.set_compute_capability(member, index):
                raise EngineError(f"{trt.__name__} refuses compute capability {capability}", advice="leave it out")


def known_capabilities(trt: Compiler) -> tuple[str, ...]:
    """The compute capabilities that the module can be told to build for, like "8.9"; none for TensorRT."""
    if trt.__name__ != "tensorrt_rtx":
        return ()
    members = cast(TargetsCapabilities, trt).ComputeCapability.__members__
    return tuple(f"{name[2:-1]}.{name[-1]}" for name in members if name.startswith("SM"))


def _runs_on(trt: Compiler, options: BuildOptions) -> str:
    """In words. By default a TensorRT-RTX 1.7 plan's header has the bits of 8.0, 8.6, 8.9, 12.0 and 12.1, not 7.5's."""
    machine = f"on {platform.system().lower()} {platform.machine()}"
    known = known_capabilities(trt)
    if not known:
        gpu = cuda.devices()[0]  # TensorRT builds for the current device, the first
        return f"{gpu.name} of compute capability {gpu.compute_capability} {machine}, TensorRT {trt.__version__}"
    chosen = options.compute_capabilities or tuple(capability for capability in known if capability != _TURING)
    return f"NVIDIA GPUs of compute capability {', '.join(chosen)} {machine}, TensorRT-RTX {trt.__version__}"

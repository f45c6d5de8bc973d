"""Builds a plan from an ONNX file: one builder for TensorRT (10.x, 11.x) and TensorRT-RTX, given the imported module.

The network is always strongly typed: a tensor has the type that the graph gives it, in every version, and no builder
flag changes it. Timing caches are TensorRT's only: TensorRT-RTX has none, and asks for a GPU when it is asked about
them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skdeploy import engines
from skdeploy.core.errors import EngineError, UsageError
from skdeploy.core.listing import some_lines
from skdeploy.core.spec import Frozen
from skdeploy.devices import cuda, jetson
from skdeploy.devices.jetson import MemoryLimits, memory_limits
from skdeploy.engines import _made
from skdeploy.engines._api import Compiler, HostMemory, Network, Tensor, dtype_name
from skdeploy.engines._configure import Shapes, configure, tactic_memory, use_timing_cache
from skdeploy.engines._configure import known_capabilities as known_capabilities
from skdeploy.engines._log import Log, capture, error_recorder
from skdeploy.engines._made import MEMORY, made, runtime
from skdeploy.engines._nodes import parser_errors
from skdeploy.engines._profiles import profile_shapes
from skdeploy.engines._progress import Progress, interrupts_kept, progress_monitor
from skdeploy.engines.compatibility import BuiltFor, built_for
from skdeploy.engines.definition import prove_definition
from skdeploy.engines.inspect import prove_plan
from skdeploy.engines.options import BatchProfile as BatchProfile
from skdeploy.engines.options import BuildOptions as BuildOptions
from skdeploy.engines.options import require_supported
from skdeploy.engines.proof import PrecisionProof, read_graph
from skdeploy.engines.stored import with_stored_weights
from skdeploy.engines.timing_cache import TimingDevice, read_timing_cache, write_timing_cache

if TYPE_CHECKING:
    import onnx_ir as ir


class EngineReport(Frozen):
    """The result of a build.

    ``profile``: the (min, opt, max) shapes of each input; ``more_profiles``: those of the other profiles. The memory figures
    are the device's; None if the log has none. ``workspace_bytes`` and ``tactic_bytes``: the limits that were set; None for
    the compiler's own. ``layer_types`` counts the outputs of the network definition's layers by dtype: what the graph asked
    for. ``proof``: the types that the layers run in, of the plan itself if it was built on its GPU. ``built_for``: what must
    be the same where the plan is loaded. ``log_warnings`` are those that change no type; the others fail the build.
    """

    compiler: str
    version: str
    plan_bytes: int
    activation_memory_bytes: int | None
    weights_memory_bytes: int | None
    runs_on: tuple[str, ...]
    profile: Shapes
    more_profiles: tuple[Shapes, ...] = ()
    workspace_bytes: int | None = None
    tactic_bytes: int | None = None
    layers: int
    layer_types: dict[str, int]
    proof: PrecisionProof
    built_for: BuiltFor
    log_warnings: tuple[str, ...]
    seconds: float


def build(
    trt: Compiler, onnx_path: Path, plan_path: Path, options: BuildOptions, on_progress: Callable[[str, float], None]
) -> EngineReport:
    """Builds ``onnx_path`` and writes the plan to ``plan_path``, a temporary name that the caller renames.

    ``on_progress(phase, fraction)`` is called from the builder with fractions from 0 to 1, never falling within a
    phase; phases nest, and a name may start again. What it raises, KeyboardInterrupt included, cancels the build and
    is raised from here, as does Ctrl-C, and SIGTERM where the caller has a handler that raises.

    Raises UsageError for options that do not fit the graph or the compiler; EngineError for a graph that the parser
    refuses, or would build with other types than it says, for an engine that runs wider than its graph, and for a build
    that fails; IntegrityError for a timing cache that is cut; OSError if the plan cannot be written.
    """
    started = time.monotonic()
    version = trt.__version__
    if options.profile is None:
        raise UsageError(f"no batch profile to build {onnx_path} with", advice="give one, as BatchProfile(1, 8, 32)")
    gpu = next((device.compute_capability for device in cuda.devices()), None)
    require_supported(trt.__name__, version, options, on_jetson=jetson.is_jetson(), gpu=gpu)
    workspace, tactic = memory_limits(options.workspace_bytes, options.tactic_bytes)
    limits = MemoryLimits(workspace, None if tactic is None else tactic_memory(tactic))
    cache = _Cache(options.timing_cache, trt.__version__) if options.timing_cache is not None else None
    progress = Progress(on_progress)
    with capture(trt) as (logger, log), interrupts_kept(progress):
        plan, facts = _plan(trt, logger, log, onnx_path, options, limits, cache, progress)
        proof = _prove(trt, logger, log, plan, onnx_path, options, facts.proof)
        proof = with_stored_weights(proof, onnx_path, memoryview(plan))
        progress.check()
    proof.check(onnx_path)
    if cache is not None:
        cache.write()  # first: should the plan's disk be full, the next build is quick
    with plan_path.open("wb") as file:
        file.write(memoryview(plan))
    built = built_for(trt, options)
    return EngineReport(
        compiler=trt.__name__,
        version=version,
        plan_bytes=plan.nbytes,
        activation_memory_bytes=log.memory_bytes.get("activation"),
        weights_memory_bytes=log.memory_bytes.get("weights"),
        runs_on=(_runs_on(built),),
        profile=facts.profiles[0],
        more_profiles=facts.profiles[1:],
        workspace_bytes=limits.workspace_bytes,
        tactic_bytes=limits.tactic_bytes,
        layers=facts.layers,
        layer_types=facts.layer_types,
        proof=proof,
        built_for=built,
        log_warnings=tuple(dict.fromkeys(map(str, log.warnings))),
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class _NetworkFacts:
    profiles: tuple[Shapes, ...]
    layers: int
    layer_types: dict[str, int]
    proof: PrecisionProof


class _Cache:
    """The timing cache of one build: read before it, written after it."""

    def __init__(self, path: Path, tensorrt: str) -> None:
        gpu = cuda.devices()[0]  # TensorRT builds for the current device, the first
        self._path = path
        self._device = TimingDevice(
            gpu=gpu.name, compute_capability=gpu.compute_capability, tensorrt=tensorrt, cuda=cuda.driver_version()
        )
        self.content = read_timing_cache(path, self._device)

    def write(self) -> None:
        write_timing_cache(self._path, self._device, self.content)


def _plan(
    trt: Compiler,
    logger: object,
    log: Log,
    onnx_path: Path,
    options: BuildOptions,
    limits: MemoryLimits,
    cache: _Cache | None,
    progress: Progress,
) -> tuple[HostMemory, _NetworkFacts]:
    """The plan in memory. The builder, its network and its copy of the weights are freed on return."""
    builder = _made.builder(trt, logger, log)
    network = _made.network(trt, log, builder)
    _parse(trt, network, logger, log, onnx_path)
    progress.check()
    graph = read_graph(onnx_path)
    nodes = _require_types_of_graph(trt, network, graph, onnx_path)
    profiles = tuple(
        {tensor.name: profile_shapes(tensor, batch, options, onnx_path) for tensor in _inputs(network)}
        for batch in options.profiles
    )
    proof = prove_definition(network, graph)
    proof.check(onnx_path)
    del graph  # and its weights
    facts = _NetworkFacts(profiles, network.num_layers, _layer_types(network), proof)
    network.error_recorder = builder.error_recorder = error_recorder(trt)
    config = made(trt, log, "a builder configuration", builder.create_builder_config)
    configure(trt, builder, config, options, profiles, limits)
    timing = use_timing_cache(trt, config, cache.content) if cache is not None else None
    config.progress_monitor = monitor = progress_monitor(trt, progress)
    plan = builder.build_serialized_network(network, config)
    config.progress_monitor = None
    del monitor  # alive until here: TensorRT only borrows it
    progress.check()
    _refuse_type_changes(trt, log, onnx_path)
    if unfit := log.profile_warnings():
        raise EngineError(
            f"{trt.__name__} {trt.__version__} cannot run {onnx_path} with every batch of the profile "
            f"{', '.join(map(str, options.profiles))}: {'; '.join(unfit)}",
            advice="give a smaller largest batch",
        )
    if plan is None:
        raise EngineError(
            f"{trt.__name__} {trt.__version__} could not build {onnx_path}: {log.reasons(nodes)}",
            advice=_advice(options),
        )
    if cache is not None and timing is not None:
        cache.content = bytes(memoryview(made(trt, log, "a copy of the timing cache", timing.serialize, advice=MEMORY)))
    return plan, facts


def _prove(
    trt: Compiler,
    logger: object,
    log: Log,
    plan: HostMemory,
    onnx_path: Path,
    options: BuildOptions,
    definition: PrecisionProof,
) -> PrecisionProof:
    """Of the plan itself, which TensorRT can load where it has built it. Ahead of time, and of a plan that needs a lean runtime
    to be loaded, there is no more than the proof of the network definition.
    """
    if engines.compiler(trt.__name__).AHEAD_OF_TIME or options.version_compatible:
        return definition
    loader = runtime(trt, logger, log)
    engine = loader.deserialize_cuda_engine(bytes(memoryview(plan)))
    if engine is None:
        raise EngineError(
            f"{trt.__name__} {trt.__version__} cannot load the plan that it built from {onnx_path}: {log.reasons()}",
            advice="free GPU memory and build again",
        )
    return prove_plan(trt, log, engine, onnx_path)


def _advice(options: BuildOptions) -> str:
    if options.dla_core is not None and not options.dla_fallback:
        return "the reason may be a layer that the DLA cannot run: --dla-fallback lets the GPU run it"
    return "the compiler gives this reason; a smaller profile or workspace, or another precision, may help"


def _parse(trt: Compiler, network: Network, logger: object, log: Log, onnx_path: Path) -> None:
    """Fills ``network`` from the file. Raises EngineError with the parser's errors, or its warnings about types."""
    parser = made(trt, log, "a parser", lambda: trt.OnnxParser(network, logger))
    parsed = parser.parse_from_file(str(onnx_path))
    log.parsed()
    errors = parser_errors(parser)
    if not parsed or errors:
        raise EngineError(
            f"{trt.__name__} {trt.__version__} refuses {onnx_path}:\n{some_lines(errors or [log.reasons()])}",
            advice="change these nodes in the network; or stop at ONNX with --target onnx",
        )
    if network.num_outputs == 0:  # the parser accepts an empty file, and some that are no ONNX at all
        raise EngineError(
            f"{onnx_path} holds no graph: it has no outputs",
            advice="the file is empty or not an ONNX file; export again",
        )
    _refuse_type_changes(trt, log, onnx_path)


def _refuse_type_changes(trt: Compiler, log: Log, onnx_path: Path) -> None:
    changes = log.type_warnings()
    if changes:
        raise EngineError(
            f"{trt.__name__} {trt.__version__} would build {onnx_path} with other types than the graph "
            f"has:\n{some_lines(changes)}",
            advice="use types that TensorRT supports: symmetric INT8, zero points of 0, equal types",
        )


def _require_types_of_graph(trt: Compiler, network: Network, model: ir.Model, onnx_path: Path) -> dict[str, str]:
    """The network's inputs and outputs have the file's dtypes: the parser turns DOUBLE into FLOAT without a word.

    Returns the modules that the file's nodes belong to, by their names.
    """
    from skdeploy.core.patterns import module_of

    dtypes = {value.name: value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    tensors = _inputs(network) + [network.get_output(index) for index in range(network.num_outputs)]
    for tensor in tensors:
        dtype = dtypes[tensor.name]
        wanted = dtype.numpy().name if dtype is not None else "of no type"
        if dtype_name(tensor.dtype) != wanted:
            raise EngineError(
                f"{trt.__name__} {trt.__version__} makes {tensor.name!r} of {onnx_path} "
                f"{dtype_name(tensor.dtype)}, but the graph has {wanted}",
                advice="export the network with float32 or float16 inputs and outputs",
            )
    return {name: module_of(name) for node in model.graph if (name := node.name)}


def _inputs(network: Network) -> list[Tensor]:
    return [network.get_input(index) for index in range(network.num_inputs)]


def _layer_types(network: Network) -> dict[str, int]:
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return Counter(dtype_name(layer.get_output(at).dtype) for layer in layers for at in range(layer.num_outputs))


def _runs_on(built: BuiltFor) -> str:
    """In words."""
    where = f"of compute capability {', '.join(built.compute_capabilities)} on {built.system.lower()} {built.machine}"
    return f"{built.gpu or 'NVIDIA GPUs'} {where}, {engines.label(built.compiler)} {built.version}"

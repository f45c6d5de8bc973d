"""ONNX Runtime: on the CPU for every precision, on CUDA and TensorRT providers where there is a GPU.

``onnxruntime_cuda.py`` and ``onnxruntime_tensorrt.py`` are the backends on a GPU; they open the one session class that is here.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from skdeploy.backends import assignment
from skdeploy.backends.base import Array, Deployed, Session, validate_feeds
from skdeploy.backends.profiles import choose_profile
from skdeploy.core import cpu
from skdeploy.core.errors import ExportError, UsageError
from skdeploy.core.files import digest_file
from skdeploy.core.packages import Availability, install_command, require
from skdeploy.core.spec import Precision, TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from skdeploy.backends.onnxruntime_gpu import GpuOptions, Shapes
    from skdeploy.ir.large import Portable

NAME: Final = "onnxruntime"
FORMAT: Final = "onnx"
DEVICE: Final = "cpu"
DISTRIBUTIONS: Final = ("onnxruntime", "onnxruntime-gpu")
EXTRA: Final = "cpu"
HELP: Final = ""
OPTIONS: Final = None

CPU: Final = "CPUExecutionProvider"
Config = Mapping[str, str]  # ONNX Runtime's own names of session options, and their values
# Threads that wait by spinning take the time of what runs beside: an export proves while it goes on.
EXACT: Final[Config] = {"session.disable_quant_qdq": "1", "session.intra_op.allow_spinning": "0"}
INT8_KERNELS: Final[Config] = {"session.qdqisint8allowed": "1"}  # of a tiny SKNet on x86, 9 layers; without it, 1
DEFAULT: Final[Config] = {}
# Turns biases into INT32, in the type of the scales: in FP16, integers end at 65504, and a bias has more steps than that, of
# activation scale times weight scale. A trained SKNet of 94.6 % top-1 is left with 32.4 % by it (ONNX Runtime 1.32).
BIAS_QUANTIZER: Final = "WeightBiasQuantization"
# ONNX Runtime's words, 1.32, for an index that is not there.
_BEYOND_TABLE: Final = re.compile(
    r"Gather node\. Name:'(?P<node>[^']*)'.*idx=(?P<index>-?\d+) must be within the inclusive range \[-?\d+,(?P<last>\d+)\]",
    re.DOTALL,
)
DTYPES: Final = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(uint8)": "uint8",
    "tensor(int8)": "int8", "tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(bool)": "bool",
}  # fmt: skip


def probe() -> Availability:
    """Whether ONNX Runtime works here, on the CPU."""
    try:
        import onnxruntime as ort

        version = str(ort.__version__)
        ort.get_available_providers()  # a package that lost its files imports, and has no such function
    except (ImportError, AttributeError, OSError) as error:
        return Availability(NAME, False, reason=f"{error}", install=install_command("cpu"))
    return Availability(NAME, True, version, device=f"CPU, {cpu.cores()} threads")


def installed_twice() -> str:
    """A known trap: onnxruntime and onnxruntime-gpu share one folder, the one installed last wins. Empty if there is none."""
    found = []
    for name in DISTRIBUTIONS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    if len(found) < 2:
        return ""
    return (
        f"{' and '.join(found)} are both installed: they overwrite each other's files, so the GPU providers may be gone. "
        "Fix: pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    )


class OnnxRuntimeSession(Session):
    """A graph in ONNX Runtime. By default it runs Q/DQ on the CPU as the graph says, see ``open_session``.

    ``profile`` has the (min, opt, max) shapes of the inputs where they are limited, as an engine's are, and is None elsewhere.
    """

    profile: Mapping[str, Shapes] | None = None

    def __init__(
        self,
        source: Path | bytes | Portable,
        provider: Literal["cpu"] | GpuOptions,
        threads: int | None,
        *,
        config: Config = EXACT,
        shown: str = "",
        optimised_graph: Path | None = None,
        as_listed: bool = False,
        arena: bool = True,
    ) -> None:
        """``shown`` is what errors call the graph; ``optimised_graph`` is where to write what ONNX Runtime makes of it.

        ``as_listed`` runs nodes in the order of the graph: by itself ONNX Runtime leaves what gives an output only to the end.
        Without ``arena`` each tensor has a block of its own: an arena grows by doubling, so up to half of it is never used.
        """
        ort = require("onnxruntime", extra="cpu")
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors; warnings are about its own optimisations
        # One block for all tensors of a run: many outputs, or a run beside another, make it twice what is used.
        options.enable_mem_pattern = config is not EXACT
        options.enable_cpu_mem_arena = arena
        if as_listed:
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        threads = threads or cpu.thread_limit()
        if threads is not None:
            options.intra_op_num_threads = threads
        if optimised_graph is not None:
            options.optimized_model_filepath = str(optimised_graph)
        shown = shown or (str(source) if isinstance(source, Path) else "the graph")
        self._kept: list[Any] = []  # weights beside the message: ONNX Runtime reads them where they are
        if not isinstance(source, Path | bytes):
            self._kept = [ort.OrtValue.ortvalue_from_numpy(array) for array in source.weights.values()]
            if self._kept:
                options.add_external_initializers(list(source.weights), self._kept)
            source = source.message
        if provider == "cpu":
            self._session = _create(ort, source, options, CPU, config, shown)
        else:
            self._session, self.profile = _create_on_gpu(ort, source, options, provider, config, shown)
        self.inputs = tuple(_tensor_spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(_tensor_spec(value) for value in self._session.get_outputs())
        self._names = [spec.name for spec in self.outputs]

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self.profile is not None:
            choose_profile({name: array.shape for name, array in feeds.items()}, [self.profile])
        contiguous = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        with _refusals(feeds):
            outputs = self._session.run(self._names, contiguous)
        return dict(zip(self._names, outputs, strict=True))

    def run_each(self, feeds: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        """``run`` on the CPU, which hands out one output after another. Where the outputs are all that a network computes, a
        second copy of them at once would be most of the memory.
        """
        ort = require("onnxruntime", extra="cpu")
        validate_feeds(self.inputs, feeds)
        given = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in feeds.items()}
        with _refusals(feeds):
            values = self._session.run_with_ort_values(self._names, given)
        values.reverse()
        for name in self._names:
            yield name, values.pop().numpy()

    def close(self) -> None:
        super().close()
        self._session, self._kept = None, []


@contextmanager
def _refusals(feeds: Mapping[str, Array]) -> Iterator[None]:
    """ExportError for what ONNX Runtime raises while it runs: a graph can hold sizes that its interface does not tell."""
    try:
        yield
    except Exception as error:  # ONNX Runtime's own exceptions share no base class below Exception
        if (beyond := _BEYOND_TABLE.search(str(error))) is not None:
            raise _beyond_table(beyond) from error
        shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
        raise ExportError(
            f"ONNX Runtime cannot run the graph on {shapes}: {str(error).partition(chr(10))[0]}"
        ) from error


def open_session(
    artifact: Path,
    *,
    provider: Literal["cpu"] | GpuOptions = "cpu",
    threads: int | None = None,
    also: Sequence[str] = (),
    optimised: bool = False,
) -> OnnxRuntimeSession:
    """Opens an ONNX file. ``also`` names inner tensors to return as outputs too.

    On the CPU the session computes what the graph says, which is what parity is measured with, and ONNX Runtime by itself does
    not: FP16 tensors are rounded (``backends/rounding.py``), and Q/DQ are arithmetic of their own. By default it makes INT8
    kernels of DQ-Conv-Q, whose 16-bit sums saturate on CPUs without VNNI (``backends/emulation.py`` finds out). Here, integers
    are dequantized, those of weights once, when the session is opened, and convolutions are FP32.

    ``optimised`` runs the graph as a user's ONNX Runtime does, with its default options and without any rounding of ours. For
    INT8 with FP16 left, that is broken in 1.32 (``BIAS_QUANTIZER``): users must set ``session.disable_quant_qdq`` to 1.

    ``provider`` may be the options of one for GPUs, which then runs the whole graph: a session that would run part of it
    elsewhere is an error (``assignment.py``). CUDA computes Q/DQ as the CPU does here, in FP32; TensorRT makes INT8 of them.

    Raises IntegrityError for a broken file, UsageError for an unknown tensor or options that do not fit the graph, ExportError
    for a graph that ONNX Runtime refuses, DependencyError without it, the provider, a GPU or a driver for it, EngineError for a
    graph that the provider does not run.
    """
    model = load_graph(artifact)
    if also or (provider == "cpu" and not optimised and _has_narrow(model)):
        return open_model(model, str(artifact), provider=provider, threads=threads, also=also, optimised=optimised)
    return OnnxRuntimeSession(artifact, provider, threads, config=DEFAULT if optimised else EXACT)


@contextmanager
def open_deployed(artifact: Path, *, precision: Precision, threads: int) -> Iterator[Deployed]:
    """By ONNX Runtime's defaults, but for INT8: with INT8 kernels wherever it has some and they compute right; and for BF16,
    which it does not load.

    By default it has none on x86 for signed activations, which are what our graphs have, and would run INT8 as FP32.
    """
    from skdeploy.backends.rounding import cpu_lacks

    if lacks := cpu_lacks(load_graph(artifact)):
        emulated = f"ONNX Runtime has no {lacks.words} on the CPU: skdeploy computes in FP32 and rounds each tensor"
        with open_session(artifact, threads=threads) as session:
            yield Deployed(session, "each tensor rounded by skdeploy", threads, emulated)
        return
    if not precision.integer:
        with OnnxRuntimeSession(artifact, "cpu", threads, config=DEFAULT) as session:
            yield Deployed(session, "ONNX Runtime's default options", threads)
        return
    model = load_graph(artifact)
    emulated = int8_kernels_refused(model)
    if emulated:
        with OnnxRuntimeSession(artifact, "cpu", threads, config=EXACT) as session:
            yield Deployed(session, "session.disable_quant_qdq=1", threads, emulated)
        return
    from skdeploy.backends.emulation import int8_layers

    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        with OnnxRuntimeSession(artifact, "cpu", threads, config=INT8_KERNELS, optimised_graph=optimised) as session:
            layers = sum(node.op_type in assignment.LAYERS for node in model.graph)
            kernels = int8_layers(load_graph(optimised))
            text = f"session.qdqisint8allowed=1, INT8 kernels in {kernels} of {layers} layers with weights"
            yield Deployed(session, text, threads, "" if kernels else "it has none for this graph")


def int8_kernels_refused(model: ir.Model) -> str:
    """Why an INT8 graph is not to be run with ONNX Runtime's INT8 kernels on the CPU: they compute wrong. Empty if it may."""
    from skdeploy.backends.emulation import saturates

    if _has_narrow(model):
        return (
            "with them ONNX Runtime rounds the FP16 biases beside INT8 away; export with --int8-fallback fp32 "
            "to use them"
        )
    return "they saturate on this CPU, which has no VNNI instructions" if saturates() else ""


def open_model(
    model: ir.Model,
    shown: str = "the graph",
    *,
    provider: Literal["cpu"] | GpuOptions = "cpu",
    threads: int | None = None,
    also: Sequence[str] = (),
    optimised: bool = False,
) -> OnnxRuntimeSession:
    """``open_session`` for a graph in memory, which is changed. ``shown`` is what errors call it."""
    if provider == "cpu" and not optimised and _has_narrow(model):
        from skdeploy.backends.rounding import RoundNarrow

        RoundNarrow()(model)
    if also:
        outputs = {value.name for value in model.graph.outputs}
        values = {value.name: value for node in model.graph for value in node.outputs}
        unknown = [name for name in also if name not in values]
        if unknown:
            raise UsageError(f"{shown} has no tensor named {unknown[0]!r}", advice="`skdeploy inspect` shows the graph")
        model.graph.outputs.extend(values[name] for name in also if name not in outputs)
    from skdeploy.ir.large import portable

    config = DEFAULT if optimised else EXACT
    # Inner tensors that are outputs are most of the memory of a run.
    return OnnxRuntimeSession(portable(model), provider, threads, config=config, shown=shown, arena=not also)


def _beyond_table(said: re.Match[str]) -> UsageError:
    """An input holds an index that a Gather's table does not have, as a token beyond the vocabulary."""
    last = int(said["last"])
    return UsageError(
        f"the inputs hold the number {said['index']}, but the node {said['node']} (Gather) looks it up in a table of "
        f"{last + 1} rows",
        advice=f"give whole numbers from 0 to {last}, as the network was trained with",
    )


def _create(
    ort: Any,
    source: Path | bytes,
    options: Any,
    provider: str | tuple[str, Mapping[str, str]],
    config: Config,
    shown: str,
    disabled: Sequence[str] = (),
) -> Any:
    """An ``onnxruntime.InferenceSession``. Raises ExportError if it cannot be made."""
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(
            source if isinstance(source, bytes) else str(source),
            options,
            providers=[provider],
            disabled_optimizers=list(disabled),
            enable_fallback=0,  # by default it retries on the CPU, when a provider fails to open the graph or to run it
        )
    except Exception as error:  # ONNX Runtime's own exceptions share no base class below Exception
        raise ExportError(f"ONNX Runtime cannot load {shown}: {str(error).splitlines()[0]}") from error


def _create_on_gpu(
    ort: Any, source: Path | bytes, options: Any, gpu: GpuOptions, config: Config, shown: str
) -> tuple[Any, dict[str, Shapes] | None]:
    """A session whose provider runs all that the graph computes, and the limits of its inputs' shapes."""
    import onnx
    import onnx_ir as ir

    from skdeploy.backends import provider_problems
    from skdeploy.backends.engine_cache import engine_folder
    from skdeploy.backends.onnxruntime_gpu import TensorRTOptions

    problem = provider_problems.problem(ort, gpu)
    if problem is not None:
        raise problem
    model = ir.from_proto(onnx.ModelProto.FromString(source)) if isinstance(source, bytes) else load_graph(source)
    inputs = [_value_spec(value) for value in model.graph.inputs if not value.is_initializer()]
    tensorrt = gpu if isinstance(gpu, TensorRTOptions) else None
    with ExitStack() as held:
        folder = None
        if tensorrt is not None and tensorrt.cache_root is not None:
            digest = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else digest_file(source)
            key = tensorrt.engine_key(digest, inputs, str(ort.__version__))
            folder = held.enter_context(engine_folder(tensorrt.cache_root, key))
        given = {
            **({} if tensorrt else config),
            **assignment.session_config(ort),
        }  # it must see the weights' Q/DQ pairs
        off = [BIAS_QUANTIZER] if config is not DEFAULT else []
        try:
            provider = (gpu.PROVIDER, gpu.provider_options(inputs, folder))
            session = _create(ort, source, options, provider, given, shown, off)
        except ExportError as error:
            raise provider_problems.opening_error(str(error.__cause__), gpu.PROVIDER, shown) from error.__cause__
    if gpu.PROVIDER not in session.get_providers():
        raise provider_problems.dropped(gpu.PROVIDER, session.get_providers())
    if assignment.tells_assignment(ort):
        assignment.require_assignment(assignment.assignment_of(session), gpu.PROVIDER, model, shown)
    return session, tensorrt.profile(inputs) if tensorrt is not None else None


def load_graph(path: Path) -> ir.Model:
    """Reads an ONNX file. Raises IntegrityError if it is missing, broken or not valid ONNX, ExportError if it is too large."""
    from skdeploy.ir.onnx_file import read_graph

    return read_graph(path)


def _value_spec(value: ir.Value) -> TensorSpec:
    """An input as a session would tell it, before there is one."""
    assert value.dtype is not None  # ONNX requires a type and a shape of inputs
    assert value.shape is not None
    shape = tuple(
        size if isinstance(size, int) else size.value or f"{value.name}.{axis}" for axis, size in enumerate(value.shape)
    )
    return TensorSpec(name=value.name or "", dtype=value.dtype.numpy().name, shape=shape)


def _has_narrow(model: ir.Model) -> bool:
    from skdeploy.backends.rounding import narrow_types

    narrow = narrow_types()
    return any(value.dtype in narrow for node in model.graph for value in node.outputs)


def _tensor_spec(value: Any) -> TensorSpec:
    if value.type not in DTYPES:
        raise ExportError(f"{value.name} has type {value.type}, which numpy does not have")
    # A dynamic dimension without a name is like no other.
    shape = tuple(f"{value.name}.{axis}" if size is None else size for axis, size in enumerate(value.shape))
    return TensorSpec(name=value.name, dtype=DTYPES[value.type], shape=shape)

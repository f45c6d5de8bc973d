"""ONNX Runtime: on the CPU for every precision, on CUDA and TensorRT providers where there is a GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from skdeploy.backends.base import Array, Availability, Session, require
from skdeploy.errors import DependencyError, ExportError, IntegrityError, UsageError
from skdeploy.spec import TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir

NAME: Final = "onnxruntime"
FORMAT: Final = "onnx"

Provider = Literal["cpu", "cuda", "tensorrt"]
PROVIDERS: Final[dict[str, str]] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
Config = Mapping[str, str]  # ONNX Runtime's own names of session options, and their values
EXACT: Final[Config] = {"session.disable_quant_qdq": "1"}
INT8_KERNELS: Final[Config] = {"session.qdqisint8allowed": "1"}  # of a tiny SKNet on x86, 9 layers; without it, 1
DEFAULT: Final[Config] = {}
# Turns biases into INT32, in the type of the scales: in FP16, integers end at 65504, and a bias has more steps than that, of
# activation scale times weight scale. A trained SKNet of 94.6 % top-1 is left with 32.4 % by it (ONNX Runtime 1.32).
BIAS_QUANTIZER: Final = "WeightBiasQuantization"
DTYPES: Final = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(uint8)": "uint8",
    "tensor(int8)": "int8", "tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(bool)": "bool",
}  # fmt: skip


def probe(provider: Provider = "cpu") -> Availability:
    """Whether ONNX Runtime and one of its providers work here."""
    name = NAME if provider == "cpu" else f"{NAME} ({provider})"
    try:
        import onnxruntime as ort

        version = str(ort.__version__)
        providers = ort.get_available_providers()
    except (ImportError, AttributeError, OSError) as error:
        return Availability(name, False, reason=f"{error}", install='pip install "skdeploy[cpu]"')
    if PROVIDERS[provider] not in providers:
        return Availability(
            name,
            False,
            version,
            reason=f"this build has no {PROVIDERS[provider]}",
            install='pip install "skdeploy[gpu]"',
        )
    if provider != "cpu":
        from skdeploy.backends import cuda

        devices = cuda.devices()
        if not devices:
            return Availability(name, False, version, reason=cuda.driver_problem())
        return Availability(name, True, version, device=devices[0].name)
    return Availability(name, True, version, device=f"CPU, {os.cpu_count()} threads")


def installed_twice() -> str:
    """A known trap: onnxruntime and onnxruntime-gpu share one folder, the one installed last wins. Empty if there is none."""
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
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
    """A graph in ONNX Runtime. By default it runs Q/DQ on the CPU as the graph says, see ``open_session``."""

    def __init__(
        self,
        source: Path | bytes,
        provider: Provider,
        threads: int | None,
        *,
        config: Config = EXACT,
        shown: str = "",
        optimised_graph: Path | None = None,
    ) -> None:
        """``shown`` is what errors call the graph; ``optimised_graph`` is where to write what ONNX Runtime makes of it."""
        ort = require("onnxruntime", extra="cpu")
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors; warnings are about its own optimisations
        if threads is not None:
            options.intra_op_num_threads = threads
        if optimised_graph is not None:
            options.optimized_model_filepath = str(optimised_graph)
        gpu = provider != "cpu"
        # The TensorRT provider must see the Q/DQ pairs of weights, so nothing is folded for it.
        for key, value in ({} if gpu else config).items():
            options.add_session_config_entry(key, value)
        chosen = PROVIDERS[provider]
        if chosen not in ort.get_available_providers():
            raise DependencyError(
                f"this ONNX Runtime has no {chosen}", advice='pip install "skdeploy[gpu]"; see `skdeploy doctor`'
            )
        shown = shown or ("the graph" if isinstance(source, bytes) else str(source))
        try:
            self._session = ort.InferenceSession(
                source if isinstance(source, bytes) else str(source),
                options,
                providers=[chosen],
                disabled_optimizers=[BIAS_QUANTIZER] if gpu and config is not DEFAULT else [],
            )
        except Exception as error:  # ONNX Runtime's own exceptions share no base class below Exception
            raise ExportError(f"ONNX Runtime cannot load {shown}: {str(error).splitlines()[0]}") from error
        if chosen not in self._session.get_providers():
            raise DependencyError(
                f"ONNX Runtime fell back from {chosen} to {self._session.get_providers()} without an error"
            )
        self.inputs = tuple(_tensor_spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(_tensor_spec(value) for value in self._session.get_outputs())
        self._names = [spec.name for spec in self.outputs]

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        contiguous = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        try:
            outputs = self._session.run(self._names, contiguous)
        except Exception as error:  # as above; a graph can hold sizes that its interface does not tell
            shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
            raise ExportError(
                f"ONNX Runtime cannot run the graph on {shapes}: {str(error).partition(chr(10))[0]}"
            ) from error
        return dict(zip(self._names, outputs, strict=True))

    def close(self) -> None:
        super().close()
        self._session = None


def open_session(
    artifact: Path,
    *,
    provider: Provider = "cpu",
    threads: int | None = None,
    also: Sequence[str] = (),
    optimised: bool = False,
) -> OnnxRuntimeSession:
    """Opens an ONNX file. ``also`` names inner tensors to return as outputs too.

    On the CPU the session computes what the graph says, which is what parity is measured with, and ONNX Runtime by itself does
    not: FP16 tensors are rounded (``graph/rounding.py``), and Q/DQ are arithmetic of their own. By default it makes INT8
    kernels of DQ-Conv-Q, whose 16-bit sums saturate on CPUs without VNNI (``graph/emulation.py`` finds out). Here, integers are
    dequantized, those of weights once, when the session is opened, and convolutions are FP32.

    ``optimised`` runs the graph as a user's ONNX Runtime does, with its default options and without any rounding of ours. For
    INT8 with FP16 left, that is broken in 1.32 (``BIAS_QUANTIZER``): users must set ``session.disable_quant_qdq`` to 1.

    Raises IntegrityError for a broken file, UsageError for an unknown tensor, ExportError for a graph that ONNX Runtime
    refuses, DependencyError without it.
    """
    model = load_graph(artifact)
    if also or (provider == "cpu" and not optimised and _has_half(model)):
        return open_model(model, str(artifact), provider=provider, threads=threads, also=also, optimised=optimised)
    return OnnxRuntimeSession(artifact, provider, threads, config=DEFAULT if optimised else EXACT)


def open_model(
    model: ir.Model,
    shown: str = "the graph",
    *,
    provider: Provider = "cpu",
    threads: int | None = None,
    also: Sequence[str] = (),
    optimised: bool = False,
) -> OnnxRuntimeSession:
    """``open_session`` for a graph in memory, which is changed. ``shown`` is what errors call it."""
    if provider == "cpu" and not optimised and _has_half(model):
        from skdeploy.graph.rounding import RoundToHalf

        RoundToHalf()(model)
    if also:
        outputs = {value.name for value in model.graph.outputs}
        values = {value.name: value for node in model.graph for value in node.outputs}
        unknown = [name for name in also if name not in values]
        if unknown:
            raise UsageError(f"{shown} has no tensor named {unknown[0]!r}", advice="`skdeploy inspect` shows the graph")
        model.graph.outputs.extend(values[name] for name in also if name not in outputs)
    config = DEFAULT if optimised else EXACT
    return OnnxRuntimeSession(_serialised(model), provider, threads, config=config, shown=shown)


def load_graph(path: Path) -> ir.Model:
    """Reads an ONNX file. Raises IntegrityError if it is missing, truncated or no ONNX."""
    import onnx_ir
    from google.protobuf.message import DecodeError

    try:
        model = onnx_ir.load(path)
    except (OSError, DecodeError, ValueError, TypeError) as error:
        raise IntegrityError(
            f"{path} cannot be read as ONNX: {error}", advice="it is truncated or another kind of file"
        ) from error
    if not len(model.graph):
        raise IntegrityError(f"{path} holds no nodes", advice="it is truncated or another kind of file")
    return model


def _serialised(model: ir.Model) -> bytes:
    import onnx_ir

    return onnx_ir.to_proto(model).SerializeToString()


def _has_half(model: ir.Model) -> bool:
    import onnx_ir

    half = onnx_ir.DataType.FLOAT16
    return any(value.dtype == half for node in model.graph for value in node.outputs)


def _tensor_spec(value: Any) -> TensorSpec:
    if value.type not in DTYPES:
        raise ExportError(f"{value.name} has type {value.type}, and numpy has no such type")
    # A dynamic dimension without a name is like no other.
    shape = tuple(f"{value.name}.{axis}" if size is None else size for axis, size in enumerate(value.shape))
    return TensorSpec(name=value.name, dtype=DTYPES[value.type], shape=shape)

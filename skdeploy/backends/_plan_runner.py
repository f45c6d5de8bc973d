"""Runs a plan on a GPU with TensorRT or TensorRT-RTX; torch owns the device buffers and the stream.

A plan is native code. It is loaded only if its bytes have the digest that the manifest gives, checked before anything
else happens and on the same bytes that are then loaded. Host code inside plans stays forbidden: nothing here sets
``engine_host_code_allowed``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from skdeploy import engines
from skdeploy.backends import cuda
from skdeploy.backends.base import Array, Availability, Session
from skdeploy.engines._api import Compiler, Engine, dtype_name
from skdeploy.engines._build import known_capabilities
from skdeploy.engines._log import capture
from skdeploy.errors import DependencyError, EngineError, IntegrityError, UsageError
from skdeploy.spec import TensorSpec

IMAGE_DIMENSIONS: Final = ("batch", "channels", "height", "width")
# What numpy and torch both have.
_NUMPY_DTYPES: Final = ("float32", "float16", "int64", "int32", "int8", "uint8", "bool")


def probe(name: str) -> Availability:
    """Whether plans of the compiler ``name`` run here: it, a GPU that it serves, and torch with CUDA. Never raises."""
    try:
        trt = _module(name)
    except DependencyError as error:
        return Availability(name, False, reason=error.message, install=error.advice)
    except Exception as error:  # noqa: BLE001  (a broken native package can raise anything; the reason is told)
        return Availability(
            name, False, reason=f"{name} does not import: {error}", install=engines.install_advice(name)
        )
    gpu = cuda.devices()[0]
    return Availability(name, True, trt.__version__, f"{gpu.name}, compute capability {gpu.compute_capability}")


def open_plan(name: str, artifact: Path, *, sha256: str) -> PlanSession:
    """Loads a plan that has the SHA-256 ``sha256``, made by the compiler ``name``.

    Raises IntegrityError, before anything is imported, if the file cannot be read or is another; DependencyError
    without the compiler, a GPU or a torch with CUDA; EngineError if TensorRT refuses the plan.
    """
    try:
        plan = artifact.read_bytes()
    except OSError as error:
        raise IntegrityError(f"cannot read {artifact}: {error.strerror}", advice="build the engine again") from error
    digest = hashlib.sha256(plan).hexdigest()
    if digest != sha256.lower():
        raise IntegrityError(
            f"{artifact} has SHA-256 {digest}, expected {sha256}: not the engine that was built, and not loaded",
            advice="a plan is native code: build it again from its ONNX file, or get the right one from its builder",
        )
    return PlanSession(_module(name), artifact, plan)


def _module(name: str) -> Compiler:
    """The compiler's module, once it is sure that its plans can run here. Raises DependencyError."""
    if not cuda.devices():
        raise DependencyError(
            f"no GPU to run an engine on: {cuda.driver_problem()}",
            advice="run on a machine with an NVIDIA GPU and driver, or run the ONNX file with ONNX Runtime",
        )
    trt = engines.load(name)
    gpu, known = cuda.devices()[0], known_capabilities(trt)
    if known and gpu.compute_capability not in known:
        raise DependencyError(
            f"{engines.LABELS[name]} {trt.__version__} does not run on {gpu.name} ({gpu.compute_capability})",
            advice=f"it runs on compute capability {', '.join(known)}; use --target tensorrt on this GPU",
        )
    import torch

    if not torch.cuda.is_available():
        raise DependencyError(
            f"torch {torch.__version__} cannot use the GPU, and engines run in its buffers",
            advice="install a torch built for CUDA, see https://pytorch.org/get-started/locally",
        )
    return trt


class PlanSession(Session):
    """A plan on the first GPU. Dynamic dimensions are named batch, height and width by their place; sizes outside the
    plan's profile are a UsageError that tells the profile.
    """

    def __init__(self, trt: Compiler, artifact: Path, plan: bytes) -> None:
        import torch

        self._trt = trt
        self._artifact = artifact
        self._torch = torch
        with capture(trt) as (logger, log):
            self._runtime: Any = trt.Runtime(logger)
            _require_valid(trt, self._runtime, artifact, plan)
            engine = self._runtime.deserialize_cuda_engine(plan)
            context = engine.create_execution_context() if engine is not None else None
        if engine is None or context is None:
            raise EngineError(
                f"{trt.__name__} {trt.__version__} cannot load {artifact}: {log.reasons()}",
                advice="a plan needs the TensorRT version and the GPU that it was built for: build it again here",
            )
        self._engine: Any = engine
        self._context: Any = context
        self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.inputs, self.outputs = _tensors(engine, artifact)
        self.profile = {spec.name: _profile(engine, spec.name) for spec in self.inputs}

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self._context is None:
            raise UsageError(f"the session of {self._artifact} is closed", advice="open it again")
        torch, context, buffers = self._torch, self._context, {}
        for name, array in feeds.items():
            require_inside_profile(name, array.shape, self.profile[name])
        with capture(self._trt) as (_, log), torch.cuda.stream(self._stream):

            def must(succeeded: bool, what: str) -> None:
                if not succeeded:
                    raise EngineError(
                        f"the engine {self._artifact} could not {what}: {log.reasons()}",
                        advice="free GPU memory, or build the engine again here",
                    )

            for name, array in feeds.items():
                buffers[name] = torch.tensor(np.ascontiguousarray(array), device="cuda")
                must(context.set_input_shape(name, array.shape), f"set the shape of {name} to {array.shape}")
            if unknown := context.infer_shapes():
                raise EngineError(f"{self._artifact}: the shapes of {', '.join(unknown)} are not known from the inputs")
            for spec in self.outputs:
                shape = tuple(context.get_tensor_shape(spec.name))
                buffers[spec.name] = torch.empty(shape, dtype=getattr(torch, spec.dtype), device="cuda")
            for name, buffer in buffers.items():
                must(context.set_tensor_address(name, buffer.data_ptr()), f"give {name} its buffer")
            must(context.execute_async_v3(self._stream.cuda_stream), "start")
            outputs = {spec.name: buffers[spec.name].cpu().numpy() for spec in self.outputs}
        self._stream.synchronize()
        return outputs

    def close(self) -> None:
        """Frees the context, the engine and the runtime, and gives torch's cached buffers back to the GPU."""
        self._context = self._engine = self._runtime = self._stream = None
        self._torch.cuda.empty_cache()


def require_inside_profile(name: str, shape: Sequence[int], profile: tuple[tuple[int, ...], ...]) -> None:
    """``profile`` is the (min, opt, max) shapes. Raises UsageError with the limits of the first dimension outside."""
    for axis, (size, low, best, high) in enumerate(zip(shape, *profile, strict=True)):
        if not low <= size <= high:
            place = _dimension(axis, len(shape))
            raise UsageError(
                f"input {name!r} has shape {tuple(shape)}: {place} {size} is outside the engine's profile",
                advice=f"the engine takes {place} {low} to {high}, best at {best}; build one with a wider profile",
            )


def _require_valid(trt: Compiler, runtime: Any, artifact: Path, plan: bytes) -> None:
    """What TensorRT-RTX says of a plan from its header alone; the others have no such question. Raises EngineError."""
    if not hasattr(runtime, "get_engine_validity"):
        return
    validity, diagnostics = runtime.get_engine_validity(plan)
    if validity.name == "INVALID":
        causes = [
            name.lower().replace("_", " ")
            for name, bit in vars(trt)["EngineInvalidityDiagnostics"].__members__.items()
            if int(diagnostics) & int(bit)
        ]
        raise EngineError(
            f"{trt.__name__} says that {artifact} does not run here: {', '.join(causes) or 'no cause given'}",
            advice="build it again here, or with this GPU's compute capability named",
        )


def _tensors(engine: Engine, artifact: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and the outputs. Raises UsageError for a dtype that numpy does not have."""
    found: dict[str, list[TensorSpec]] = {"INPUT": [], "OUTPUT": []}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        dtype, sizes = dtype_name(engine.get_tensor_dtype(name)), tuple(engine.get_tensor_shape(name))
        if dtype not in _NUMPY_DTYPES:
            raise UsageError(
                f"{artifact} has {name!r} in {dtype}, which numpy does not have",
                advice="export the network with float32 or float16 inputs and outputs",
            )
        shape = tuple(_dimension(axis, len(sizes)) if size < 0 else size for axis, size in enumerate(sizes))
        found[engine.get_tensor_mode(name).name].append(TensorSpec(name=name, dtype=dtype, shape=shape))
    return tuple(found["INPUT"]), tuple(found["OUTPUT"])


def _profile(engine: Engine, name: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(name, 0))


def _dimension(axis: int, rank: int) -> str:
    """A plan keeps no names of dimensions: batch, and of an image's four the usual ones."""
    return IMAGE_DIMENSIONS[axis] if axis == 0 or rank == len(IMAGE_DIMENSIONS) else f"dimension_{axis}"

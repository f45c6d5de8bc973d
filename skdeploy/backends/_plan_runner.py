"""Runs a plan on a GPU with TensorRT or TensorRT-RTX, in memory that ``device_memory.py`` owns: no torch.

A plan is native code. It is loaded only if its bytes have the digest that the manifest gives, checked before anything
else happens and on the same bytes that are then loaded. Host code inside plans stays forbidden: nothing here sets
``engine_host_code_allowed``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, cast

from skdeploy import engines
from skdeploy.backends.base import Array, Session, validate_feeds
from skdeploy.backends.device_memory import Gpu, load_driver
from skdeploy.backends.execution import BoundPlan, Execution
from skdeploy.backends.profiles import Profile, dimension
from skdeploy.core.errors import DependencyError, EngineError, IntegrityError, UsageError
from skdeploy.core.files import read_file
from skdeploy.core.packages import Availability
from skdeploy.core.spec import TensorSpec
from skdeploy.devices import cuda
from skdeploy.engines._api import Compiler, Engine, Runtime, ValidatesPlans, dtype_name
from skdeploy.engines._build import known_capabilities
from skdeploy.engines._log import capture
from skdeploy.engines._made import runtime
from skdeploy.engines.compatibility import BuiltFor, require_compatible
from skdeploy.engines.refit import refit

# What TensorRT and numpy both have.
_NUMPY_DTYPES: Final = ("float32", "float16", "int64", "int32", "int8", "uint8", "bool")


def probe(name: str) -> Availability:
    """Whether plans of the compiler ``name`` run here: it, a GPU that it serves, and CUDA's bindings. Never raises."""
    try:
        trt, _ = _modules(name)
    except DependencyError as error:
        return Availability(name, False, reason=error.message, install=error.advice)
    except Exception as error:  # noqa: BLE001  (a broken native package can raise anything; the reason is told)
        return Availability(name, False, reason=f"cannot import {name}: {error}", install=engines.install_advice(name))
    gpu = cuda.devices()[0]
    return Availability(name, True, trt.__version__, f"{gpu.name}, compute capability {gpu.compute_capability}")


def open_plan(
    name: str, artifact: Path, *, sha256: str, built_for: BuiltFor | None = None, weights: Path | None = None
) -> PlanSession:
    """Load a plan made by the compiler ``name``, whose SHA-256 must be ``sha256``.

    ``built_for`` is the manifest's record of it. ``weights`` is the ONNX file that it was built from, its digest checked; a
    stripped plan takes its weights from there.

    Raises, before anything is imported: IntegrityError if the file cannot be read or has another digest, EngineError if the
    plan is not whole, DependencyError if it was built for another machine. Then DependencyError without the compiler, a GPU
    or CUDA's bindings, and EngineError if TensorRT refuses the plan.
    """
    try:
        plan = read_file(artifact)
    except OSError as error:
        raise IntegrityError(f"cannot read {artifact}: {error.strerror}", advice="build the engine again") from error
    digest = hashlib.sha256(plan).hexdigest()
    if digest != sha256.lower():
        raise IntegrityError(
            f"{artifact} has SHA-256 {digest}, expected {sha256}: it is not the engine that was built, so it "
            "is not loaded",
            advice="an engine is native code: build it again from its ONNX file, or get the right one from its builder",
        )
    require_compatible(name, artifact, plan, built_for)
    stripped = built_for is not None and built_for.stripped
    if stripped and weights is None:
        raise EngineError(
            f"{artifact} was built without weights, and its ONNX file was not given",
            advice="run it from its bundle, which holds both",
        )
    trt, driver = _modules(name)
    return PlanSession(trt, driver, artifact, plan, weights if stripped else None)


def _modules(name: str) -> tuple[Compiler, Any]:
    """The compiler and CUDA's bindings, once it is sure that plans can run here. Raises DependencyError."""
    if not cuda.devices():
        raise DependencyError(
            f"no GPU to run an engine on: {cuda.driver_problem()}",
            advice="run on a machine with an NVIDIA GPU and driver, or run the ONNX file with ONNX Runtime",
        )
    trt = engines.load(name)
    gpu, known = cuda.devices()[0], known_capabilities(trt)
    if known and gpu.compute_capability not in known:
        raise DependencyError(
            f"{engines.label(name)} {trt.__version__} does not run on {gpu.name} ({gpu.compute_capability})",
            advice=f"it runs on compute capability {', '.join(known)}; use TensorRT on this GPU: "
            "skdeploy build BUNDLE --target tensorrt",
        )
    return trt, load_driver()


class PlanSession(Session):
    """A plan on the first GPU. Dynamic dimensions are named batch, height and width by their place; sizes outside all of the
    plan's profiles are a UsageError that tells these. One thread at a time may run it.
    """

    def __init__(self, trt: Compiler, driver: Any, artifact: Path, plan: bytes, weights: Path | None) -> None:
        """Deserializes, and refits from ``weights`` if given. Raises EngineError, UsageError, DependencyError."""
        self._trt, self._artifact = trt, artifact
        with ExitStack() as undo:
            self._gpu = Gpu(driver)
            undo.callback(self._gpu.close)
            with capture(trt) as (logger, log):
                loader = runtime(trt, logger, log)
                _require_valid(trt, loader, artifact, plan)
                engine = loader.deserialize_cuda_engine(plan)
            if engine is None:
                raise EngineError(
                    f"{trt.__name__} {trt.__version__} cannot load {artifact}: {log.reasons()}",
                    advice="a plan needs the TensorRT version and the GPU that it was built for: build it again here",
                )
            if weights is not None:
                refit(trt, engine, weights)
            self._runtime: Runtime | None = loader
            self._engine: Engine | None = engine
            undo.callback(self._forget)
            self.inputs, self.outputs = _tensors(engine, artifact)
            self.profiles = _profiles(engine, self.inputs)
            self._execution = self._new_execution()
            undo.callback(self._execution.close)
            self._undo = undo.pop_all()

    def _new_execution(self) -> Execution:
        assert self._engine is not None  # the callers know that the session is open
        return Execution(self._trt, self._engine, self._artifact, self._gpu, self.outputs, self.profiles)

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        execution = self._execution
        execution.place(feeds)
        execution.copy_in()
        execution.enqueue()
        execution.copy_out()
        self._gpu.synchronize()
        return execution.outputs()

    def bind(self, feeds: Mapping[str, Array], *, cuda_graph: bool = False) -> BoundPlan:
        """The plan with these feeds and a context of its own, to be timed run by run; ``cuda_graph``: each run launches one.

        Raises UsageError as ``run`` does; EngineError if memory runs out, or the engine does not go into a CUDA graph.
        """
        if self._closed:
            raise UsageError(f"the session of {self._artifact} is closed", advice="open it again")
        validate_feeds(self.inputs, feeds)
        self._gpu.use()
        return BoundPlan(self._new_execution(), self._gpu, feeds, cuda_graph=cuda_graph)

    def close(self) -> None:
        """Frees the buffers, the context, the engine and the runtime, in this order."""
        if not self._closed:
            super().close()
            self._gpu.use()
            self._undo.close()

    def _forget(self) -> None:
        """TensorRT frees an object when Python lets go of it; the engine must go before its runtime."""
        self._engine = None
        self._runtime = None


def _require_valid(trt: Compiler, loader: Runtime, artifact: Path, plan: bytes) -> None:
    """Raise if TensorRT-RTX refuses a plan by its header; TensorRT has no such check.

    Raises EngineError for a plan that is damaged, DependencyError for one that does not fit this machine.
    """
    if not hasattr(loader, "get_engine_validity"):
        return
    validity, diagnostics = cast(ValidatesPlans, loader).get_engine_validity(plan)
    if validity.name == "INVALID":
        causes = [
            name.lower().replace("_", " ")
            for name, bit in vars(trt)["EngineInvalidityDiagnostics"].__members__.items()
            if int(diagnostics) & int(bit)
        ]
        refusal = EngineError if not causes or "malformed engine" in causes else DependencyError
        raise refusal(
            f"{trt.__name__} says that {artifact} does not run here: {', '.join(causes) or 'no cause given'}",
            advice="build it again here, or with the compute capability of this GPU",
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
        shape = tuple(dimension(axis, len(sizes)) if size < 0 else size for axis, size in enumerate(sizes))
        found[engine.get_tensor_mode(name).name].append(TensorSpec(name=name, dtype=dtype, shape=shape))
    return tuple(found["INPUT"]), tuple(found["OUTPUT"])


def _profiles(engine: Engine, inputs: tuple[TensorSpec, ...]) -> tuple[Profile, ...]:
    """Every optimization profile: (min, opt, max) shapes by input."""
    return tuple(
        {spec.name: tuple(map(tuple, engine.get_tensor_profile_shape(spec.name, number))) for spec in inputs}
        for number in range(engine.num_optimization_profiles)
    )

"""One execution context of an engine with the memory it runs in, and runs of it that are timed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Final, NamedTuple, Self

from skdeploy.backends.base import Array
from skdeploy.backends.device_memory import Buffer, Event, Gpu, Graph
from skdeploy.backends.profiles import Profile, choose_profile
from skdeploy.core.errors import EngineError, UsageError
from skdeploy.core.spec import TensorSpec
from skdeploy.engines._api import Compiler, Engine, ExecutionContext
from skdeploy.engines._log import Log, capture
from skdeploy.engines._made import MEMORY, made

MS_PER_SECOND: Final = 1e3


class RunTimes(NamedTuple):
    """Of one inference: ``host_ms`` with the copies in and out and all waiting, ``device_ms`` of the engine alone."""

    host_ms: float
    device_ms: float


class Execution:
    """A context and its buffers, which are kept from run to run and grow when a shape asks for more."""

    def __init__(
        self,
        trt: Compiler,
        engine: Engine,
        artifact: Path,
        gpu: Gpu,
        outputs: Sequence[TensorSpec],
        profiles: Sequence[Profile],
    ) -> None:
        """Raises EngineError if the device has no room for the context's activations."""
        with capture(trt) as (_, log):
            context = made(trt, log, f"a context of {artifact}", engine.create_execution_context, advice=MEMORY)
        self._trt, self._artifact, self._gpu = trt, artifact, gpu
        self._context: ExecutionContext = context
        self._profiles, self._profile = profiles, 0  # a context begins with profile 0
        self._inputs: dict[str, Buffer] = {}
        self._outputs = {spec.name: Buffer(gpu, f"output {spec.name}") for spec in outputs}
        self._dtypes = {spec.name: spec.dtype for spec in outputs}

    def place(self, feeds: Mapping[str, Array]) -> None:
        """Takes feeds that were validated: the profile, shapes, buffers and addresses are set, and the values staged.

        Raises UsageError for shapes outside every profile, EngineError if memory runs out or TensorRT refuses.
        """
        shapes = {name: array.shape for name, array in feeds.items()}
        profile = choose_profile(shapes, self._profiles)
        self._gpu.use()
        with capture(self._trt) as (_, log):
            if profile != self._profile:
                changed = self._context.set_optimization_profile_async(profile, self._gpu.stream)
                self._must(changed, f"change to profile {profile}", log)
                self._profile = profile
            for name, array in feeds.items():
                buffer = self._inputs.setdefault(name, Buffer(self._gpu, f"input {name}"))
                buffer.reserve(str(array.dtype), array.shape)
                buffer.write(array)
                set_shape = self._context.set_input_shape(name, array.shape)
                self._must(set_shape, f"set the shape of {name} to {array.shape}", log)
            if unknown := self._insufficient():
                raise EngineError(
                    f"{self._artifact}: the shapes of {', '.join(unknown)} cannot be computed from the inputs",
                    advice="export the network again, with shapes that follow from its inputs",
                )
            for name, buffer in self._outputs.items():
                buffer.reserve(self._dtypes[name], tuple(self._context.get_tensor_shape(name)))
            for name, buffer in (self._inputs | self._outputs).items():
                self._must(self._context.set_tensor_address(name, buffer.address), f"give {name} its buffer", log)

    def _insufficient(self) -> Sequence[str]:
        """Names of the tensors whose shapes stay open. Raises EngineError where TensorRT (10.13 on) raises."""
        try:
            return self._context.infer_shapes()
        except RuntimeError as error:
            raise EngineError(
                f"{self._artifact}: TensorRT cannot work out the shapes of its outputs from the inputs: {error}",
                advice="give images of the size that the network was exported for, or export it again for these",
            ) from error

    def copy_in(self) -> None:
        for buffer in self._inputs.values():
            buffer.to_device()

    def enqueue(self) -> None:
        """Puts one inference on the stream."""
        with capture(self._trt) as (_, log):
            self._must(self._context.execute_async_v3(self._gpu.stream), "start", log)

    def copy_out(self) -> None:
        for buffer in self._outputs.values():
            buffer.to_host()

    def outputs(self) -> dict[str, Array]:
        """Copies of what the last ``copy_out`` brought; the stream must have been waited for."""
        return {name: buffer.read() for name, buffer in self._outputs.items()}

    def captured(self) -> Graph:
        """One inference as a CUDA graph, for the shapes and buffers that are placed now. Raises EngineError."""
        self.enqueue()  # after a change of shape TensorRT does work that no graph can hold, see "CUDA Graphs" in its guide
        self._gpu.synchronize()
        try:
            return self._gpu.record(self.enqueue)
        except EngineError as error:
            raise EngineError(
                f"{self._artifact} cannot run as a CUDA graph: {error.message}", advice="run it without CUDA graphs"
            ) from error

    def _must(self, succeeded: bool, what: str, log: Log) -> None:
        if not succeeded:
            raise EngineError(
                f"the engine {self._artifact} could not {what}: {log.reasons()}",
                advice="free GPU memory, or build the engine again here",
            )

    def close(self) -> None:
        """Frees the buffers, then the context: TensorRT frees what Python lets go of."""
        for buffer in (self._inputs | self._outputs).values():
            buffer.close()
        del self._context


class BoundPlan(AbstractContextManager["BoundPlan"]):
    """An engine with feeds of its own, to be run and timed again and again. It has its own context: what else its session
    runs does not touch it. Close it before the session.
    """

    def __init__(self, execution: Execution, gpu: Gpu, feeds: Mapping[str, Array], *, cuda_graph: bool) -> None:
        """Takes ``execution`` over. Raises UsageError for shapes outside the profiles, EngineError."""
        self._execution, self._gpu = execution, gpu
        with ExitStack() as undo:
            undo.callback(execution.close)
            execution.place(feeds)
            execution.copy_in()
            gpu.synchronize()
            self._start = Event(gpu)
            undo.callback(self._start.close)
            self._end = Event(gpu)
            undo.callback(self._end.close)
            self._graph = execution.captured() if cuda_graph else None
            if self._graph is not None:
                undo.callback(self._graph.close)
            self._undo = undo.pop_all()
        self._closed = False
        self._ran = False

    def run(self) -> RunTimes:
        """One inference: copies in, engine, copies out, waited for. Raises EngineError; UsageError after ``close``."""
        if self._closed:
            raise UsageError("this bound plan is closed", advice="bind the feeds again")
        gpu, execution = self._gpu, self._execution
        gpu.use()
        begun = time.perf_counter()
        execution.copy_in()
        self._start.record()
        if self._graph is None:
            execution.enqueue()
        else:
            self._graph.launch()
        self._end.record()
        execution.copy_out()
        gpu.synchronize()
        host_ms = (time.perf_counter() - begun) * MS_PER_SECOND
        self._ran = True
        return RunTimes(host_ms, self._end.ms_since(self._start))

    def outputs(self) -> dict[str, Array]:
        """The outputs of the last ``run``. Raises UsageError before the first, and after ``close``."""
        if self._closed or not self._ran:
            raise UsageError("this bound plan has no outputs", advice="call run first, and close it last")
        return self._execution.outputs()

    def close(self) -> None:
        """Frees its memory, its context and its graph."""
        if not self._closed:
            self._closed = True
            self._gpu.use()
            self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

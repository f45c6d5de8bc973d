"""What a bench times: an artifact of a bundle, in a session as a user of that backend would open it, with feeds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from skdeploy.backends import onnxruntime, onnxruntime_gpu
from skdeploy.backends.assignment import LAYERS
from skdeploy.backends.base import BACKENDS, Array, Session, backend
from skdeploy.bench.timing import Infer, Run, host_timed
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.runners import GRAPH_BACKENDS, TORCH, Runner, engines_of, last_graph, runner_named
from skdeploy.bundle.station_facts import GraphFacts
from skdeploy.core import cpu
from skdeploy.core.errors import DependencyError, ExportError, UsageError
from skdeploy.core.spec import InputSpec, Precision, TensorSpec

# Its quantized operators are QuantizeLinear, DequantizeLinear and MatMulInteger: github.com/microsoft/onnxruntime, docs/FAQ.md.
CUDA_EMULATES: Final = "its CUDA provider has none for convolutions; use onnxruntime-tensorrt or an engine"
PLAN_BACKENDS: Final = ("tensorrt", "tensorrt_rtx")
MANY_BYTES: Final = 4 << 30  # of feeds: more is a slip of the finger, and would be swapped


@dataclass(frozen=True)
class Subject:
    """A runner with an open session; ``session_text`` says how it was opened, ``threads`` those that the CPU computes with.

    ``emulated`` says why an INT8 graph is run without INT8 kernels, as its Q/DQ in floating point; empty if it is not.
    """

    runner: Runner
    session: Session
    session_text: str
    threads: int | None
    cuda_graph: bool
    emulated: str = ""

    def feeds(self, batch: int, seed: int) -> dict[str, Array]:
        """Raises UsageError for a batch that the graph does not take."""
        return random_feeds(self.session.inputs, batch, self.runner.spec.input, seed, self.runner.shown)

    @contextmanager
    def infer(self, feeds: Mapping[str, Array]) -> Iterator[Infer]:
        """One inference, timed, again and again. Raises UsageError outside an engine's profile, EngineError."""
        if self.runner.backend not in PLAN_BACKENDS:
            yield host_timed(lambda: self.session.run(feeds))
            return
        session: Any = self.session  # a PlanSession: importing its type would import what plans need
        with session.bind(feeds, cuda_graph=self.cuda_graph) as plan:
            yield lambda: Run(*plan.run())


def random_feeds(inputs: Sequence[TensorSpec], batch: int, image: InputSpec, seed: int, shown: str) -> dict[str, Array]:
    """Normal noise, or bytes where pixels go in: time does not depend on values, but for denormals and zeros.

    The first dimension is the batch, where it has a name; other names are the card's channels, height and width by place.
    Raises UsageError for a batch that a fixed graph does not have, or of more than 4 GiB.
    """
    random = np.random.default_rng(seed)
    sizes = (batch, image.channels, image.height, image.width)
    feeds = {}
    for spec in inputs:
        first = spec.shape[0] if spec.shape else batch
        if isinstance(first, int) and first != batch:
            raise UsageError(
                f"{shown} takes batches of {first} only: its input {spec.name!r} is {spec}, and --batch has {batch}",
                advice=f"give --batch {first}, or export it with a dynamic batch",
            )
        shape = tuple(size if isinstance(size, int) else sizes[axis] for axis, size in enumerate(spec.shape))
        dtype = np.dtype(spec.dtype)
        wanted = int(np.prod([float(size) for size in shape])) * dtype.itemsize
        if wanted > MANY_BYTES:
            raise UsageError(
                f"a batch of {batch} has {wanted / 2**30:.1f} GiB of inputs", advice="give a smaller --batch"
            )
        if dtype.kind == "f":
            feeds[spec.name] = random.standard_normal(shape, np.float32).astype(dtype)
        else:
            feeds[spec.name] = random.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)
    return feeds


def parse_batches(text: str) -> tuple[int, ...]:
    """``1,8,32``. Raises UsageError for anything but positive whole numbers."""
    batches = []
    for word in text.split(","):
        try:
            batch = int(word)
        except ValueError as error:
            raise UsageError(
                f"--batch {text!r}: {word.strip()!r} is no whole number", advice="give sizes like 1,8,32"
            ) from error
        if batch < 1:
            raise UsageError(f"--batch {text!r}: a batch of {batch} has no image", advice="give sizes like 1,8,32")
        batches.append(batch)
    return tuple(dict.fromkeys(batches))


def parse_backends(text: str | None) -> tuple[str, ...] | None:
    """``onnxruntime,tensorrt``; None stays None. Raises UsageError for an unknown one."""
    if text is None:
        return None
    names = [word.strip() for word in text.split(",")]
    for name in names:
        if name not in BACKENDS:
            raise UsageError(f"no backend named {name!r}", advice=f"backends: {', '.join(BACKENDS)}")
    return tuple(dict.fromkeys(names))


def choose(
    bundle: Bundle, artifact: str | None, backends: tuple[str, ...] | None, *, prefix: str = ""
) -> tuple[list[Runner], list[str]]:
    """The runners to time, and what is left out and why.

    By default the last graph and every engine, on each backend that works here but torch, which is not what is deployed.
    A backend that is named must work: DependencyError. Raises UsageError where it has nothing to run.
    """
    chosen, notes = list[Runner](), list[str]()
    named = runner_named(bundle, artifact, prefix) if artifact is not None else None
    for name in backends or tuple(name for name in BACKENDS if name != TORCH or artifact == TORCH):
        runners = [r for r in _candidates(bundle, named, name, prefix) if r.backend == name]
        if not runners and backends is None:
            continue
        available = backend(name).probe()
        if not available.available:
            if backends is not None:
                raise DependencyError(f"{name} does not work here: {available.reason}", advice=available.install)
            notes.append(f"not on {name}: {available.reason}")
            continue
        if not runners:
            raise _nothing_to_run(bundle, named, name)
        chosen += runners
    if not chosen:
        raise DependencyError(
            f"nothing of {bundle.folder} runs here: {'; '.join(notes)}", advice="see `skdeploy doctor`"
        )
    return chosen, notes


def _candidates(bundle: Bundle, named: Runner | None, name: str, prefix: str) -> list[Runner]:
    if named is not None and named.artifact.format == "onnx":
        return [Runner(bundle, named.artifact, name, prefix)] if name in GRAPH_BACKENDS else []
    if named is not None:
        return [named]
    if name == TORCH:
        return [runner_named(bundle, TORCH, prefix)]
    if name in GRAPH_BACKENDS:
        return [Runner(bundle, last_graph(bundle).artifact, name, prefix)]
    return list(engines_of(bundle, prefix))


def _nothing_to_run(bundle: Bundle, named: Runner | None, name: str) -> UsageError:
    if named is not None:
        return UsageError(f"{named.artifact.path} does not run on {name}", advice=f"it runs on {named.backend}")
    return UsageError(
        f"{bundle.folder} has no engine for {name}",
        advice=f"`skdeploy build {bundle.folder} --target {name}` makes one",
    )


@contextmanager
def opened(runner: Runner, threads: int | None, *, cuda_graph: bool) -> Iterator[Subject]:
    """The runner as its backend's users run it. Raises what opening it raises."""
    count = threads or cpu.cores()
    if runner.backend == onnxruntime.NAME:
        with _opened_on_cpu(runner, count) as subject:
            yield subject
    elif runner.backend == TORCH:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            with runner.open() as session:
                yield Subject(runner, session, "torch's eager mode, float32, on the CPU", count, cuda_graph=False)
        finally:
            torch.set_num_threads(before)
    elif runner.backend in PLAN_BACKENDS:
        with runner.open() as session:
            yield Subject(runner, session, "one CUDA graph a run" if cuda_graph else "no CUDA graph", None, cuda_graph)
    else:
        is_int8 = runner.precision is Precision.INT8 and runner.backend == onnxruntime_gpu.CUDA
        with runner.open() as session:
            yield Subject(runner, session, "default options", None, False, CUDA_EMULATES if is_int8 else "")


@contextmanager
def _opened_on_cpu(runner: Runner, threads: int) -> Iterator[Subject]:
    """By ONNX Runtime's defaults, but for INT8: with INT8 kernels wherever it has some and they compute right.

    By default it has none on x86 for signed activations, which are what our graphs have, and would run INT8 as FP32.
    """
    path = runner.bundle.check(runner.artifact)
    if runner.precision is not Precision.INT8:
        with onnxruntime.OnnxRuntimeSession(path, "cpu", threads, config=onnxruntime.DEFAULT) as session:
            yield Subject(runner, session, "ONNX Runtime's default options", threads, cuda_graph=False)
        return
    emulated = int8_kernels_refused(runner.artifact)
    if emulated:
        with onnxruntime.OnnxRuntimeSession(path, "cpu", threads, config=onnxruntime.EXACT) as session:
            yield Subject(runner, session, "session.disable_quant_qdq=1", threads, False, emulated)
        return
    from skdeploy.backends.emulation import int8_layers

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        optimised = Path(folder) / "optimised.onnx"
        session = onnxruntime.OnnxRuntimeSession(
            path, "cpu", threads, config=onnxruntime.INT8_KERNELS, optimised_graph=optimised
        )
        stack.enter_context(session)
        layers = sum(node.op_type in LAYERS for node in onnxruntime.load_graph(path).graph)
        kernels = int8_layers(onnxruntime.load_graph(optimised))
        text = f"session.qdqisint8allowed=1, INT8 kernels in {kernels} of {layers} layers with weights"
        yield Subject(runner, session, text, threads, False, "" if kernels else "it has none for this graph")


def int8_kernels_refused(artifact: Artifact) -> str:
    """Why an INT8 graph is not to be run with ONNX Runtime's INT8 kernels on the CPU: they compute wrong. Empty if it may."""
    from skdeploy.backends.emulation import saturates

    if artifact.facts_as(GraphFacts).fallback is Precision.FP16:
        return (
            "with them ONNX Runtime rounds the FP16 biases beside INT8 away; export with --int8-fallback fp32 for them"
        )
    return "they saturate on this CPU, which has no VNNI instructions" if saturates() else ""


def check_output(subject: Subject, feeds: Mapping[str, Array], batch: int) -> None:
    """One run before any is timed. Raises ExportError if it gives no finite figure: then its speed means nothing."""
    for name, array in subject.session.run(feeds).items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ExportError(
                f"{subject.runner.shown} gives {name!r} that is not finite, in batches of {batch}",
                advice="`skdeploy verify --blame` shows where it comes from",
            )

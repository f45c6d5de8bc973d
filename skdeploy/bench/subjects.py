"""The subjects of a bench: an artifact of a bundle, in a session as a user of that backend would open it, with feeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from skdeploy.backends import BACKENDS, backend, running
from skdeploy.backends.base import Array, Deployed
from skdeploy.bench.timing import Infer, Run, host_timed
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.runners import Runner, engines_of, last_graph, runner_named
from skdeploy.core import cpu
from skdeploy.core.errors import DependencyError, ExportError, UsageError
from skdeploy.core.spec import ModelSpec, TensorSpec
from skdeploy.devices import cuda
from skdeploy.images.fed import check_sizes

MANY_BYTES: Final = 4 << 30  # of feeds: more is a slip of the finger, and would be swapped


@dataclass(frozen=True)
class Subject:
    """A runner with an open session. ``spec`` has the sizes to time; ``cuda_graph``: each run of a plan launches one."""

    runner: Runner
    opened: Deployed
    spec: ModelSpec
    cuda_graph: bool = False

    def feeds(self, batch: int, seed: int) -> dict[str, Array]:
        """Raises UsageError for a batch that the graph does not take."""
        return random_feeds(self.opened.session.inputs, batch, self.spec, seed, self.runner.shown)

    @contextmanager
    def infer(self, feeds: Mapping[str, Array]) -> Iterator[Infer]:
        """One inference, timed, again and again. Raises UsageError outside an engine's profile, EngineError."""
        session: Any = self.opened.session
        if self.runner.artifact.format != "engine":
            yield host_timed(lambda: session.run(feeds))
            return
        # A PlanSession: importing its type would import what plans need.
        with session.bind(feeds, cuda_graph=self.cuda_graph) as plan:
            yield lambda: Run(*plan.run())


def random_feeds(inputs: Sequence[TensorSpec], batch: int, card: ModelSpec, seed: int, shown: str) -> dict[str, Array]:
    """Normal noise, or bytes where pixels go in: time does not depend on values, but for denormals and zeros.

    The first dimension is the batch, where it has a name; other names are sizes of the card, or its channels, height and width
    by place.
    Raises UsageError for a batch that a fixed graph does not have, or of more than 4 GiB.
    """
    random = np.random.default_rng(seed)
    sizes = (batch, *card.image.shape) if card.image is not None else ()
    feeds = {}
    for spec in inputs:
        first = spec.shape[0] if spec.shape else batch
        if isinstance(first, int) and first != batch:
            raise UsageError(
                f"{shown} takes only batches of {first}: its input {spec.name!r} is {spec}, but --batch has {batch}",
                advice=f"give --batch {first}, or export it with a dynamic batch",
            )
        known = {"batch": batch, **card.usual_sizes}
        shape = tuple(
            size if isinstance(size, int) else sizes[axis] if sizes else known[size]
            for axis, size in enumerate(spec.shape)
        )
        dtype = np.dtype(spec.dtype)
        wanted = int(np.prod([float(size) for size in shape])) * dtype.itemsize
        if wanted > MANY_BYTES:
            raise UsageError(
                f"a batch of {batch} needs {wanted / 2**30:.1f} GiB for its inputs", advice="give a smaller --batch"
            )
        if dtype.kind == "f":
            feeds[spec.name] = random.standard_normal(shape, np.float32).astype(dtype)
        else:
            feeds[spec.name] = random.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)
    return feeds


def check_free_sizes(sizes: Mapping[str, int], card: ModelSpec) -> None:
    """Raises UsageError for a size of a dimension that is not free, or that the network does not take."""
    for name in sizes.keys() - card.sizes.keys():
        free = f"its free dimensions are {', '.join(card.sizes)}" if card.sizes else "leave --size out"
        raise UsageError(f"--size {name}: {card.name} has no free dimension of that name", advice=free)
    check_sizes(sizes, card, "--size")


def parse_batches(text: str) -> tuple[int, ...]:
    """``1,8,32``. Raises UsageError for anything but positive whole numbers."""
    batches = []
    for word in text.split(","):
        try:
            batch = int(word)
        except ValueError as error:
            raise UsageError(
                f"--batch {text!r}: {word.strip()!r} is not a whole number", advice="give batch sizes such as 1,8,32"
            ) from error
        if batch < 1:
            raise UsageError(
                f"--batch {text!r}: a batch needs at least 1 image", advice="give batch sizes such as 1,8,32"
            )
        batches.append(batch)
    return tuple(dict.fromkeys(batches))


def parse_backends(text: str | None) -> tuple[str, ...] | None:
    """``onnxruntime,tensorrt``; None stays None. Raises UsageError for an unknown one."""
    if text is None:
        return None
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for name in names:
        backend(name)
    return names


def choose(
    bundle: Bundle, artifact: str | None, wanted: tuple[str, ...] | None, *, prefix: str = ""
) -> tuple[list[Runner], list[str]]:
    """The runners to time, and what is left out and why.

    By default the last graph and every engine, on each backend that works here. The network itself is not what is deployed.
    A backend that is named must work: DependencyError. Raises UsageError where it has nothing to run.
    """
    chosen, absent = list[Runner](), dict[str, list[str]]()
    named = runner_named(bundle, artifact, prefix) if artifact is not None else None
    modules = running("module")
    for name in wanted or tuple(name for name in BACKENDS if name not in modules or name == artifact):
        runners = [r for r in _candidates(bundle, named, name, prefix) if r.backend == name]
        if not runners and wanted is None:
            continue
        available = backend(name).probe()
        if not available.available:
            if wanted is not None:
                raise DependencyError(f"{name} does not work here: {available.reason}", advice=available.install)
            in_want = backend(name).DEVICE == "gpu" and not cuda.devices()
            reason = f"no GPU here: {cuda.driver_problem()}" if in_want else available.reason
            absent.setdefault(reason, []).append(name)
            continue
        if not runners:
            raise _nothing_to_run(bundle, named, name)
        chosen += runners
    notes = [f"not on {', '.join(names)}: {reason}" for reason, names in absent.items()]
    if not chosen:
        raise DependencyError(
            f"{bundle.folder} has nothing that runs here: {'; '.join(notes)}",
            advice="`skdeploy doctor` shows what is missing",
        )
    return chosen, notes


def _candidates(bundle: Bundle, named: Runner | None, name: str, prefix: str) -> list[Runner]:
    if named is not None and named.artifact.format == "onnx":
        return [Runner(bundle, named.artifact, name, prefix)] if name in running("onnx") else []
    if named is not None:
        return [named]
    if name in running("module"):
        return [runner_named(bundle, name, prefix)]
    if name in running("onnx"):
        return [Runner(bundle, last_graph(bundle).artifact, name, prefix)]
    return list(engines_of(bundle, prefix))


def _nothing_to_run(bundle: Bundle, named: Runner | None, name: str) -> UsageError:
    if named is not None:
        return UsageError(f"{named.artifact.path} does not run on {name}", advice=f"it runs on {named.backend}")
    return UsageError(
        f"{bundle.folder} has no engine for {name}",
        advice=f"build one with `skdeploy build {bundle.folder} --target {name}`",
    )


@contextmanager
def opened(
    runner: Runner, threads: int | None, sizes: Mapping[str, int] | None = None, *, cuda_graph: bool
) -> Iterator[Subject]:
    """The runner as its backend's users run it. Raises what opening it raises."""
    spec = runner.spec.with_usual({**runner.spec.usual_sizes, **(sizes or {})})
    if runner.artifact.format == "engine":
        with runner.open() as session:
            text = "as one CUDA graph" if cuda_graph else "without a CUDA graph"
            yield Subject(runner, Deployed(session, text), spec, cuda_graph)
    else:
        with runner.open_deployed(threads or cpu.cores()) as deployed:
            yield Subject(runner, deployed, spec)


def check_output(subject: Subject, feeds: Mapping[str, Array], batch: int) -> None:
    """One run before any is timed. Raises ExportError if it gives no finite figure: then its speed means nothing."""
    for name, array in subject.opened.session.run(feeds).items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ExportError(
                f"{subject.runner.shown} returns NaN or infinite values in {name!r}, in batches of {batch}",
                advice="`skdeploy verify --blame` shows where they come from",
            )

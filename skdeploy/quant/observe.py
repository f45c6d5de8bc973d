"""One pass of the calibration images through the FP32 graph, watching the tensors that INT8 needs ranges for.

Every image counts, in memory that does not grow with the images; of large maps all values make the extrema and the means, and
some the histogram (``observers.py``). Each worker thread takes a few images at a time through ONNX Runtime and then into its
own observers, so one worker counts while another one computes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from queue import SimpleQueue
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.backends.base import Array
from skdeploy.backends.onnxruntime import OnnxRuntimeSession
from skdeploy.core import cpu
from skdeploy.core.errors import CalibrationError
from skdeploy.core.patterns import module_of, modules_pattern
from skdeploy.core.spec import CalibrationMethod
from skdeploy.ir.large import portable
from skdeploy.quant.methods import Candidate, fitted_images
from skdeploy.quant.observers import MagnitudeHistogram, MinMax, NotFiniteError
from skdeploy.quant.reductions import Reduced, reduce_maps
from skdeploy.quant.seen import Seen
from skdeploy.quant.thresholds import DEFAULT_PERCENTILE, check_percentile, shifted_threshold, threshold

# Of the observed tensors of one run of ONNX Runtime, which are in memory at once, for each worker: SKNet-50 has 77 MB an image,
# and runs one at a time, no slower. Small networks run a batch of up to 8, as each run has a price of its own.
RUN_BYTES: Final = 32 << 20
MOST_A_RUN: Final = 8

# Counting holds the interpreter's lock for a tenth of the time that a core needs for an image of SKNet-50, and every worker
# needs memory. Threads beyond these go to ONNX Runtime.
MOST_WORKERS: Final = 4


@dataclass(frozen=True)
class Fit:
    """The thresholds of one method: for symmetric INT8, and for a shifted tensor, None for one that is too negative."""

    threshold: float
    shifted: float | None


@dataclass(frozen=True)
class Observation:
    """The values of one tensor during calibration.

    ``shifted_threshold`` is the threshold where all 255 steps of INT8 are used (``passes/shift.py``), None for a tensor that
    is too negative. ``early_threshold`` is the threshold after the first three quarters of the images: how much the
    range still moved. ``channel_mean`` and ``channel_max`` (largest magnitude) are per channel, axis 1, over images and space:
    (C,).
    """

    minimum: float
    maximum: float
    threshold: float
    early_threshold: float
    shifted_threshold: float | None = None
    channel_mean: NDArray[np.float32] | None = None
    channel_max: NDArray[np.float32] | None = None
    # of each method that takes part in a choice: fitted to the first images, and to all
    early: Mapping[Candidate, Fit] = field(default_factory=dict)
    whole: Mapping[Candidate, Fit] = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """Images that go through the graph together: the first ``count`` of ``feeds`` are the run's images from ``start`` on."""

    start: int
    count: int
    feeds: Mapping[str, Array]


def observe(
    model: ir.Model,
    tensors: Sequence[str],
    batches: Iterable[tuple[dict[str, Array], int]],
    images: int,
    *,
    method: CalibrationMethod,
    percentile: float = DEFAULT_PERCENTILE,
    means: Collection[str] = (),
    channel_maxima: Collection[str] = (),
    candidates: Collection[Candidate] = (),
    threads: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
    name_of: Callable[[int], str] = str,
    index_of: Callable[[int], int] = int,
) -> dict[str, Observation]:
    """Runs ``images`` images through the FP32 graph and observes ``tensors``: ``watch`` and ``observations`` in one."""
    if method is CalibrationMethod.PERCENTILE:
        check_percentile(percentile)
    kind = kind_for(method, candidates)
    given = (threads, advance, name_of, index_of)
    seen = watch(model, tensors, batches, images, kind, means, channel_maxima, *given)
    return observations(seen, images, method, percentile, candidates)


def kind_for(method: CalibrationMethod, candidates: Collection[Candidate]) -> type[MinMax]:
    """The observer that these methods need."""
    return MinMax if method is CalibrationMethod.MINMAX and not candidates else MagnitudeHistogram


def watch(
    model: ir.Model,
    tensors: Sequence[str],
    batches: Iterable[tuple[dict[str, Array], int]],
    images: int,
    kind: type[MinMax],
    means: Collection[str] = (),
    channel_maxima: Collection[str] = (),
    threads: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
    name_of: Callable[[int], str] = str,
    index_of: Callable[[int], int] = int,
) -> Seen:
    """Runs images of a data set of ``images`` through the FP32 graph and keeps what is seen of ``tensors``, inputs of the
    graph or tensors inside.

    ``batches`` yields feeds, with images along the first axis of each, and how many of them are real; what follows those is
    padding and not looked at. ``means`` and ``channel_maxima`` name the tensors to have these per channel. ``threads`` is for
    all work together, by default as many as this process may use. ``advance`` is called with the number of images done.
    ``name_of`` tells an error the name of the image that came at that place, from 0, and ``index_of`` its place in the data
    set. The result depends on neither the threads nor the slices. The model is left as it is.

    Raises CalibrationError: NaN or infinity in a tensor (which, and in which image), no such tensor, not float32; and as the
    backend ``onnxruntime`` does.
    """
    names = list(dict.fromkeys((*tensors, *means, *channel_maxima)))
    threads = threads or cpu.cores()
    workers = min(threads, MOST_WORKERS)
    alone = not _images_first(model, names)
    idle: SimpleQueue[Seen] = SimpleQueue()
    fitted = fitted_images(images)
    every = [Seen(names, kind) for _ in range(workers)]
    for seen in every:
        idle.put(seen)
    # ONNX Runtime's pool serves all its callers, and each caller works too.
    opened, reduced = _open(model, names, threads - workers + 1, counted=kind is MagnitudeHistogram)
    with opened as session:

        def run(part: Slice) -> None:
            seen = idle.get()
            groups = [int(index_of(part.start + place) >= fitted) for place in range(part.count)]
            try:
                _see_slice(model, session, part, names, reduced, seen, groups, means, channel_maxima, name_of)
            finally:
                idle.put(seen)

        size = 1 if alone else images_a_run(model, names)
        for part in _in_order(run, slices(session, batches, size), workers):
            advance(part.count)
    first, *others = every
    for other in others:
        first.merge(other)
    return first


def observations(
    seen: Seen, images: int, method: CalibrationMethod, percentile: float, candidates: Collection[Candidate]
) -> dict[str, Observation]:
    """The observation of each tensor, with thresholds by ``method`` and by each of ``candidates``.

    ``seen`` is left with the observers of all images in the first group. Fewer than ``images`` may have been seen, where some
    cannot be read. Raises CalibrationError for none, or for more.
    """
    if not 0 < seen.images <= images:
        raise CalibrationError(f"calibration expected {images} images and got {seen.images}")
    with ThreadPoolExecutor(min(cpu.cores(), MOST_WORKERS)) as executor:
        found = executor.map(lambda name: _observation(name, seen, method, percentile, candidates), seen.tensors)
        return dict(zip(seen.tensors, found, strict=True))


def _open(
    model: ir.Model, names: Sequence[str], threads: int, *, counted: bool
) -> tuple[OnnxRuntimeSession, Mapping[str, Reduced]]:
    """The graph with the tensors among its outputs, or what stands for them."""
    model = model.clone()
    graph = model.graph
    reduced = reduce_maps(model, names, counted=counted)
    values = {value.name: value for node in graph for value in node.outputs}
    inputs, outputs = {value.name for value in graph.inputs}, {value.name for value in graph.outputs}
    for name in names:
        if name in inputs or name in reduced:
            continue
        if name not in values:
            raise CalibrationError(
                f"the graph has no tensor named {name!r} to calibrate", advice="`skdeploy inspect` shows the graph"
            )
        if name not in outputs:
            graph.outputs.append(values[name])
    return OnnxRuntimeSession(portable(model), "cpu", threads, as_listed=True), reduced


def _images_first(model: ir.Model, names: Collection[str]) -> bool:
    """Whether axis 0 of all these tensors is the batch. A linear layer on tokens may read them as (N * tokens, features), and
    attention as (tokens, N, features): such a tensor tells which values are an image's where there is one image only.
    """
    batches = {value.shape[0] for value in model.graph.inputs if value.shape is not None}
    made = {value.name: value.shape for node in model.graph for value in node.outputs}
    shapes = [made[name] for name in names if name in made]
    return all(shape is not None and len(shape) > 1 and shape[0] in batches for shape in shapes)


def images_a_run(model: ir.Model, names: Collection[str]) -> int:
    """How many images' observed tensors ``RUN_BYTES`` hold; 1 where a size is not known."""
    values = {value.name: value for value in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs))}
    total = 0
    for name in names:
        shape = values[name].shape if name in values else None
        sizes = [] if shape is None else list(shape)[1:]
        if shape is None or not all(isinstance(size, int) for size in sizes):
            return 1
        total += 4 * prod(size for size in sizes if isinstance(size, int))
    return min(max(1, RUN_BYTES // max(1, total)), MOST_A_RUN)


def slices(session: OnnxRuntimeSession, batches: Iterable[tuple[dict[str, Array], int]], most: int) -> Iterator[Slice]:
    """Batches without padding, cut to what a run takes; whole and with it where the graph has a fixed batch size."""
    dynamic = all(isinstance(spec.shape[0], str) for spec in session.inputs)
    start = 0
    for feeds, count in batches:
        size = most if dynamic else count
        for first in range(0, count, size):
            part = (
                {name: array[first : min(first + size, count)] for name, array in feeds.items()} if dynamic else feeds
            )
            taken = min(size, count - first)
            yield Slice(start, taken, part)
            start += taken


def _in_order(run: Callable[[Slice], None], slices: Iterable[Slice], workers: int) -> Iterator[Slice]:
    """The slices in their order, each once it is done: the first error does not depend on which thread was faster."""
    pending: deque[tuple[Slice, Future[None]]] = deque()
    executor = ThreadPoolExecutor(workers)
    try:
        for part in slices:
            pending.append((part, executor.submit(run, part)))
            if len(pending) > workers:
                oldest, future = pending.popleft()
                future.result()
                yield oldest
        for oldest, future in pending:
            future.result()
            yield oldest
    finally:
        executor.shutdown(cancel_futures=True)


def _see_slice(
    model: ir.Model,
    session: OnnxRuntimeSession,
    part: Slice,
    names: Sequence[str],
    reduced: Mapping[str, Reduced],
    seen: Seen,
    groups: Sequence[int],
    means: Collection[str],
    channel_maxima: Collection[str],
    name_of: Callable[[int], str],
) -> None:
    outputs = {**part.feeds, **session.run(part.feeds)}
    images = len(next(iter(part.feeds.values())))
    broken: dict[str, int] = {}
    for name in names:
        if name in reduced:
            try:
                _see_reduced(name, reduced[name], outputs, part.count, seen, groups, means, channel_maxima)
            except NotFiniteError as error:
                broken[name] = error.image
            continue
        values = outputs.pop(name)  # its memory is free again as soon as it has been looked at
        first = values.ndim > 1 and len(values) == images
        if values.dtype != np.float32 or not (first or images == 1):
            readers = {
                module_of(node.name) for node in model.graph if name in [read.name for read in node.inputs if read]
            }
            raise CalibrationError(
                f"{_shown(model, name)} is {values.dtype} of shape {values.shape}; calibration needs float32 "
                f"with the {images} images of a batch as first dimension, or a batch of one",
                advice="export the network with a free batch or a batch of 1, or keep the modules that read this "
                f"tensor out of INT8: --int8-keep {modules_pattern(readers or {module_of(name)})!r}",
            )
        values = values[: part.count] if first else np.atleast_2d(values)
        maps = values.reshape(*values.shape[:2], -1)
        extrema = None
        if name in channel_maxima:
            low, high = maps.min(axis=2), maps.max(axis=2)
            extrema = (low.min(axis=1), high.max(axis=1)) if first else (low.min()[None], high.max()[None])
        try:
            seen.update(name, values if first else values[None], groups, extrema)
        except NotFiniteError as error:
            broken[name] = error.image
            continue
        if name in means:
            rows = maps.mean(axis=2)
            seen.add_means(name, rows if first else rows.mean(axis=0, dtype=np.float64, keepdims=True))
        if name in channel_maxima:
            seen.add_maxima(name, np.maximum(high.max(axis=0), -low.min(axis=0)))
    if broken:
        name = min(broken, key=lambda key: broken[key])  # the first in the order of the tensors, among equals
        raise CalibrationError(
            f"{_shown(model, name)} is not finite (NaN or infinity) for the image {name_of(part.start + broken[name])}",
            advice="remove it, or check the weights with `skdeploy verify`",
        )
    seen.images += part.count


def _see_reduced(
    name: str,
    reduced: Reduced,
    outputs: dict[str, Array],
    count: int,
    seen: Seen,
    groups: Sequence[int],
    means: Collection[str],
    channel_maxima: Collection[str],
) -> None:
    """Takes what stands for a large map. Its least value counts as 0: it has no negative ones. Raises NotFiniteError."""
    maxima, mean = (outputs.pop(each)[:count, :, 0, 0] for each in (reduced.maxima, reduced.means))
    # Pooling may pass over NaN for the largest value; a mean does not, nor does it hide an infinity.
    finite = np.isfinite(mean).all(axis=1)
    highest = np.where(finite, maxima.max(axis=1), np.float32(np.nan))
    some = maxima if reduced.some is None else outputs.pop(reduced.some)[:count]
    seen.update(name, some, groups, (np.zeros_like(highest), highest))
    if name in means:
        seen.add_means(name, mean)
    if name in channel_maxima:
        seen.add_maxima(name, maxima.max(axis=0))


def _shown(model: ir.Model, name: str) -> str:
    """A tensor with the operator that makes it."""
    operators = {value.name: node.op_type for node in model.graph for value in node.outputs}
    return f"{name} ({operators[name]})" if name in operators else name


def _observation(
    name: str, seen: Seen, method: CalibrationMethod, percentile: float, candidates: Collection[Candidate]
) -> Observation:
    observer, late = (of[name] for of in seen.groups)
    least = min(observer.minimum, late.minimum)  # what is more negative later is shifted as far before
    early_threshold = threshold(observer, method, percentile)
    early = {candidate: _fit(observer, candidate, least) for candidate in candidates}
    observer.merge(late)
    sums = seen.sums.get(name)
    return Observation(
        minimum=observer.minimum,
        maximum=observer.maximum,
        threshold=threshold(observer, method, percentile),
        early_threshold=early_threshold,
        shifted_threshold=shifted_threshold(observer, least, method, percentile),
        channel_mean=None if sums is None else sums.over(seen.images),
        channel_max=seen.maxima.get(name),
        early=early,
        whole={candidate: _fit(observer, candidate, least) for candidate in candidates},
    )


def _fit(observer: MinMax, candidate: Candidate, least: float) -> Fit:
    percentile = candidate.percentile or DEFAULT_PERCENTILE
    return Fit(
        threshold(observer, candidate.method, percentile),
        shifted_threshold(observer, least, candidate.method, percentile),
    )

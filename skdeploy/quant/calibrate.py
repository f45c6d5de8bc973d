"""Calibration images to a ranges file: what is run over them, in which order, and what is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.backends.base import Array
from skdeploy.core.files import digest_json
from skdeploy.core.progress import Progress, Silent
from skdeploy.core.spec import CalibrationMethod, ModelSpec, TensorSpec
from skdeploy.images.audit import Audit, moved
from skdeploy.images.dataset import Dataset, Pixels, check_count
from skdeploy.images.duplicates import Fingerprints
from skdeploy.images.feeds import RUN_BATCH, batch_of, batches_of
from skdeploy.images.reading import read_crops
from skdeploy.ir.channels import channel_classes
from skdeploy.passes.equalize import bounding
from skdeploy.quant.choose import choose
from skdeploy.quant.identity import IMAGE, range_names
from skdeploy.quant.methods import CANDIDATES, FALLBACK, Candidate, Choice, fitted_images, scored_images
from skdeploy.quant.observe import Observation, kind_for, observations, observe, watch
from skdeploy.quant.observers import MinMax
from skdeploy.quant.quantize import (
    Shared,
    corrected_tensors,
    placed_by,
    prepare,
    prepared_by,
    ranged_tensors,
    require_no_scales,
)
from skdeploy.quant.ranges import Algorithm, CalibrationData, Ranges
from skdeploy.quant.round_weights import ROUNDING_IMAGES, measure_rounding
from skdeploy.quant.rounding import as_text
from skdeploy.quant.seen import Seen
from skdeploy.quant.steps import SILENT, SMALLEST
from skdeploy.quant.thresholds import DEFAULT_PERCENTILE, SHIFTED, SYMMETRIC

# Images whose channel maxima equalize: the factors are set by how channels compare, and that is known early.
EQUALIZING_IMAGES: Final = 32


Channels = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class CalibrationSettings:
    """How to calibrate; ``asked`` is the number of images wanted, for the audit, and ``batch`` how many are fed at a time."""

    algorithm: Algorithm
    asked: int
    batch: int = RUN_BATCH


@dataclass(frozen=True)
class Plan:
    """The things that the pass over all images watches: ``names`` are the tensors with ranges and ``means`` those with channel
    means, each by its stable name; ``maxima`` and ``reach`` of channels, from the first images, made the graph what it is.
    """

    names: Mapping[str, str]
    means: Mapping[str, str]
    maxima: Channels
    reach: Channels

    @property
    def digest(self) -> str:
        """SHA-256: equal plans of one graph watch the same values."""
        channels = {**self.maxima, **{f"reach of {key}": values for key, values in self.reach.items()}}
        shown = {key: values.tobytes().hex() for key, values in channels.items()}
        return digest_json([dict(self.names), dict(self.means), shown])


def calibrate(
    model: ir.Model,
    inputs: tuple[TensorSpec, ...],
    spec: ModelSpec,
    dataset: Dataset,
    settings: CalibrationSettings,
    *,
    evaluation: Fingerprints | None = None,
    progress: Progress | None = None,
) -> Ranges:
    """The ranges of an FP32 graph's tensors on these images, and the audit of the images.

    Two passes, ``equalized_by`` and ``watched``, and then ``concluded``. Each image is decoded when it is fed, and a batch is
    in memory at a time. ``inputs`` are those of the graph, ``evaluation`` the images that accuracy is measured on.

    Raises CalibrationError: unreadable images above 1 %, a tensor that is not finite (which, and for which image), nothing in
    the graph that could be INT8. UsageError: a batch below 1.
    """
    tell = progress or Silent()
    plan, prepared = plan_of(
        model, spec, settings.algorithm, *equalized_by(model, inputs, spec, dataset, settings, tell)
    )
    audit = Audit(dataset, spec, settings.asked)
    seen = watched(plan, prepared, inputs, spec, dataset, settings, range(len(dataset)), audit, tell)
    del prepared
    return concluded(model, inputs, spec, dataset, settings, plan, seen, audit, dataset.digest, evaluation, tell)


def equalized_by(
    model: ir.Model,
    inputs: tuple[TensorSpec, ...],
    spec: ModelSpec,
    dataset: Dataset,
    settings: CalibrationSettings,
    tell: Progress,
) -> tuple[Channels, Channels]:
    """The largest magnitudes of channels on the first images, if the graph is to be equalized by them: of the tensors with
    ranges, and of those beside that bound equalization.
    """
    require_no_scales(model)
    check_count(settings.batch, "--calib-batch")
    if not settings.algorithm.equalize:
        return {}, {}
    placed = ranged_tensors(model, placed_by(model, settings.algorithm))
    few = min(EQUALIZING_IMAGES, len(dataset))
    tell.update(f"channels, on {few} images")
    feed = _Feed(dataset, spec, inputs, settings.batch)
    beside = _beside(model, placed.values())
    first = observe(
        model,
        [*placed.values(), *beside],
        feed.batches(few),
        few,
        method=CalibrationMethod.MINMAX,
        channel_maxima=[*placed.values(), *beside],
        name_of=feed.name_of,
    )
    maxima = {key: _channels(first[name].channel_max) for key, name in placed.items()}
    reached = {name: _channels(first[name].channel_max) for name in beside}
    in_graph = {name: maxima[key] for key, name in placed.items()}
    stable = range_names(model)
    return maxima, {stable[name]: reached[name] for name in sorted(bounding(model, in_graph, reached))}


def plan_of(
    model: ir.Model, spec: ModelSpec, algorithm: Algorithm, maxima: Channels, reach: Channels
) -> tuple[Plan, ir.Model]:
    """The things to watch, and the graph as it will be quantized, equalized by the channels of the first images."""
    placed = ranged_tensors(model, placed_by(model, algorithm))
    prepared = prepare(model, spec, algorithm, maxima, {key: values.tolist() for key, values in reach.items()})
    # The image has a range too, for readers of a legacy cache: in the INT8 graph its pixels need none.
    image = {key: name for key, name in placed.items() if key == IMAGE}
    names = image | ranged_tensors(prepared, placed_by(prepared, algorithm))
    means = corrected_tensors(prepared) if algorithm.bias_correction else {}
    return Plan(names, means, maxima, reach), prepared


def unseen(plan: Plan, algorithm: Algorithm) -> Seen:
    """An empty record of a plan's tensors."""
    return Seen(
        list(dict.fromkeys((*plan.names.values(), *plan.means.values()))),
        _observer_for(algorithm),
    )


def watched(
    plan: Plan,
    prepared: ir.Model,
    inputs: tuple[TensorSpec, ...],
    spec: ModelSpec,
    dataset: Dataset,
    settings: CalibrationSettings,
    span: range,
    audit: Audit,
    tell: Progress,
) -> Seen:
    """The plan's tensors on the images of ``span``, some of all ``dataset``; ``audit`` gets the images.

    Any division into spans of whole batches gives, merged in any order, the same bits.
    """
    feed = _Feed(dataset, spec, inputs, settings.batch)
    done = 0

    def advance(images: int) -> None:
        nonlocal done
        done += images
        tell.update(f"{done} of {len(span)} images")

    return watch(
        prepared,
        list(plan.names.values()),
        feed.batches(len(span), audit, span),
        len(dataset),
        _observer_for(settings.algorithm),
        means=list(plan.means.values()),
        advance=advance,
        name_of=feed.name_of,
        index_of=feed.index_of,
    )


def concluded(
    model: ir.Model,
    inputs: tuple[TensorSpec, ...],
    spec: ModelSpec,
    dataset: Dataset,
    settings: CalibrationSettings,
    plan: Plan,
    seen: Seen,
    audit: Audit,
    digest: str,
    evaluation: Fingerprints | None,
    tell: Progress,
) -> Ranges:
    """The ranges by what was seen of all images, whose digest is ``digest``: a method is chosen, and weights are rounded, on a
    bounded number of them.
    """
    algorithm = settings.algorithm
    method, candidates = _method_of(algorithm), _candidates_of(algorithm)
    found = observations(seen, len(dataset), method.method, method.percentile or DEFAULT_PERCENTILE, candidates)
    used = tuple(audit.noted.used)
    coverage = moved(
        {key: found[name].early_threshold for key, name in plan.names.items()},
        {key: found[name].threshold for key, name in plan.names.items()},
    )
    draft = Ranges.of(
        model,
        spec,
        CalibrationData(name=dataset.name, sha256=digest, images=len(used), random=dataset.random),
        algorithm.model_copy(
            update={"method": method.method, "percentile": method.percentile, "weight_rounding": "nearest"}
        ),
        {key: _range(found[name]) for key, name in plan.names.items()},
        channel_maxima=plan.maxima,
        channel_reach=plan.reach,
        channel_means={key: _channels(found[name].channel_mean) for key, name in plan.means.items()},
        audit=audit.finish(evaluation, coverage).model_dump(mode="json"),
    )
    gptq, auto = algorithm.weight_rounding == "gptq", algorithm.method is CalibrationMethod.AUTO
    if not gptq and not auto:
        return draft.finished(algorithm, None, {})
    fits = {key: found[name] for key, name in plan.names.items()}
    del found
    shared = Shared(prepared_by(model, spec, draft, draft.algorithm))
    choice: Choice | None = None
    scored = scored_images(len(dataset), used)
    rounding: dict[str, str] = {}

    def rounded(ranges: Ranges) -> dict[str, str]:
        """By images that score no method, whether any compete or not: the first one is rounded so when it wins, and alone."""
        free = [each for each in used if each not in scored]
        few = min(ROUNDING_IMAGES, len(free))
        images = dataset.take([free[step * len(free) // few] for step in range(few)])
        feeds = _Feed(images, spec, inputs, settings.batch)
        return measure_rounding(model, spec, ranges, lambda: feeds.batches(few), few, shared, tell)

    if auto:
        fitted = fitted_images(len(dataset))
        early_ranges = {str(each): _refitted(draft, fits, each, early=True) for each in CANDIDATES}
        unrounded: Mapping[str, Ranges] = {}
        if gptq and scored:  # one rounding for all, by the fallback: the method changes little of it, and it costs most
            rounding = rounded(draft)
            competing = draft.algorithm.model_copy(update={"weight_rounding": "gptq"})
            unrounded = early_ranges
            early_ranges = {name: each.finished(competing, None, rounding) for name, each in unrounded.items()}
        images = dataset.take(scored)
        choice = choose(model, spec, early_ranges, unrounded, images, fitted, shared, tell)
        if choice.weight_rounding == "nearest":
            rounding = {name: as_text(weight.values, weight) for name, weight in shared.nearest.items()}
        draft = _refitted(draft, fits, choice.candidate, early=False)
    if gptq and not rounding:
        rounding = rounded(draft)
    return draft.finished(algorithm, choice, rounding)


def _method_of(algorithm: Algorithm) -> Candidate:
    """The method of the first draft of the ranges."""
    if algorithm.method is CalibrationMethod.AUTO:
        return FALLBACK
    return Candidate(algorithm.method, algorithm.percentile)


def _observer_for(algorithm: Algorithm) -> type[MinMax]:
    return kind_for(_method_of(algorithm).method, _candidates_of(algorithm))


def _candidates_of(algorithm: Algorithm) -> tuple[Candidate, ...]:
    return CANDIDATES if algorithm.method is CalibrationMethod.AUTO else ()


def _refitted(draft: Ranges, fits: Mapping[str, Observation], candidate: Candidate, *, early: bool) -> Ranges:
    """The ranges by another method, fitted to the first images or to all."""
    tensors = {}
    for key, seen in fits.items():
        fit = (seen.early if early else seen.whole)[candidate]
        tensors[key] = _range(replace(seen, threshold=fit.threshold, shifted_threshold=fit.shifted))
    return draft.with_tensors(tensors)


def _beside(model: ir.Model, placed: Iterable[str]) -> list[str]:
    """The tensors that equalization scales along with the placed ones, such as those before a ReLU."""
    classes = channel_classes(model)
    known = {value.name for node in model.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT}
    names = set(placed)
    return [
        name for name, ids in classes.of.items() if name in known and name not in names and not classes.fixed[ids].all()
    ]


class _Feed:
    """Images on their way into a graph. ``used`` has the places in the data set of those that came, in this pass."""

    def __init__(self, dataset: Dataset, spec: ModelSpec, inputs: tuple[TensorSpec, ...], batch: int) -> None:
        self.dataset = dataset
        self.spec = spec
        self.inputs = inputs
        self.batch = batch
        self.used: list[int] = []

    def batches(
        self, count: int, audit: Audit | None = None, span: range | None = None
    ) -> Iterator[tuple[dict[str, Array], int]]:
        """The first ``count`` images of ``span``, by default all, that can be read; ``audit`` gets all, the unreadable too.

        A batch has the images of ``batch`` places, fewer if some cannot be read: it is the same whatever came before.
        """
        self.used.clear()
        size = batch_of(self.inputs, self.batch)
        read = islice(self._read(audit, range(len(self.dataset)) if span is None else span), count)
        for _, members in groupby(read, lambda one: one[0] // size):
            yield from batches_of([pixels for _, pixels in members], self.spec, self.inputs, size)

    def index_of(self, position: int) -> int:
        """The place in the data set of the image that came at this position."""
        return self.used[position]

    def name_of(self, position: int) -> str:
        """The name of the image that came at this position."""
        return self.dataset.name_of(self.used[position])

    def _read(self, audit: Audit | None, span: range) -> Iterator[tuple[int, Pixels]]:
        images = self.dataset if len(span) == len(self.dataset) else self.dataset.take(span)
        for at, crop in read_crops(images, self.spec, audit.skip if audit else None, whole=len(self.dataset)):
            self.used.append(span[at])
            if audit is not None:
                audit.add(span[at], crop)
            yield span[at], crop.pixels


def _range(seen: Observation) -> tuple[float, float, float, float | None]:
    """(minimum, maximum, threshold, shifted threshold); a tensor that was all zero gets a range that every format holds.

    A dead tensor is one without negative values on these images; a scale for steps that are never used is harmless,
    and an offset of 128 of them too.
    """
    return (
        seen.minimum,
        seen.maximum,
        _guarded(seen.threshold, seen, SYMMETRIC),
        None if seen.shifted_threshold is None else _guarded(seen.shifted_threshold, seen, SHIFTED),
    )


def _guarded(threshold: float, seen: Observation, levels: int) -> float:
    """No scale may be zero: a percentile can be, where nearly all values are, and then the largest magnitude stands in."""
    largest = max(-seen.minimum, seen.maximum)
    return max(threshold or largest, levels * SMALLEST) if largest else levels * SILENT


def _channels(values: NDArray[np.float32] | None) -> NDArray[np.float32]:
    assert values is not None  # it was asked for
    return values


def dead_tensors(ranges: Ranges) -> Mapping[str, float]:
    """Tensors that were zero on every image, with the range that guards them."""
    return {name: found.threshold for name, found in ranges.tensors.items() if found.minimum == found.maximum == 0}

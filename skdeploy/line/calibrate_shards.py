"""``skdeploy calibrate`` divided: what one shard of the images shows as a part, and the ranges of all parts.

Every shard runs the first 32 images too, which equalize the graph, and the merge refuses parts that differ in that. A method
is chosen and weights are rounded at the merge, on 128 and 48 images at most.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from pydantic import Field

from skdeploy.accuracy.kept_parts import image_shards, parts_by
from skdeploy.core import cpu
from skdeploy.core.errors import UsageError
from skdeploy.core.files import digest_json, require_places
from skdeploy.core.progress import Progress, Silent
from skdeploy.core.spec import Frozen, ModelSpec, TensorSpec
from skdeploy.images.audit import Audit, Noted
from skdeploy.images.dataset import Dataset, joined_digest
from skdeploy.images.feeds import batch_of
from skdeploy.images.reading import check_unreadable
from skdeploy.line.calibration import CalibrationOptions, calibration_set
from skdeploy.line.export import fp32_graph, tell_of_ranges
from skdeploy.line.line import Line
from skdeploy.line.options import ExportOptions
from skdeploy.quant.calibrate import (
    CalibrationSettings,
    Plan,
    concluded,
    equalized_by,
    plan_of,
    unseen,
    watched,
)
from skdeploy.quant.identity import graph_identity
from skdeploy.quant.ranges import Ranges, Taken
from skdeploy.shards.cluster import Cluster
from skdeploy.shards.collect import Collect, check_job
from skdeploy.shards.data import check_files, listing_digest
from skdeploy.shards.held import held, scratch_folder
from skdeploy.shards.machine import machine_kind, versions
from skdeploy.shards.part import Job, Part, earlier_or_made
from skdeploy.shards.shard import Shard

SHARD_IMAGES: Final = 64  # a part is 6 MB for any number of images


class CalibrationFacts(Frozen):
    """Beside the counts: the tensors whose channels equalized the graph (arrays ``maxima0`` and ``reach0`` ...), the digest of
    the plan that this gave, SHA-256 of each image file, and what the audit noted.
    """

    maxima: Annotated[tuple[str, ...], Field(strict=False)]
    reach: Annotated[tuple[str, ...], Field(strict=False)]
    plan: str
    files: Annotated[tuple[str, ...], Field(strict=False)]
    noted: Noted
    near_bits: int


@dataclass(frozen=True)
class Calibration:
    """A job with its graph and all images."""

    job: Job
    model: ir.Model
    inputs: tuple[TensorSpec, ...]
    spec: ModelSpec
    dataset: Dataset
    settings: CalibrationSettings

    @property
    def batch(self) -> int:
        """The batch that the graph is fed: a shard has whole ones."""
        return batch_of(self.inputs, self.settings.batch)

    def span(self, shard: Shard) -> range:
        return shard.span(len(self.dataset), self.batch)


@contextmanager
def opened_calibration(options: ExportOptions, asked: CalibrationOptions, tell: Progress) -> Iterator[Calibration]:
    """The job that these options describe. Raises as ``line.export.calibrate`` before it calibrates."""
    asked.check()
    asked.require_images()
    with (
        scratch_folder() as scratch,
        fp32_graph(options, scratch, tell) as (bundle, graph),
    ):
        spec = bundle.manifest.model
        images = calibration_set(asked, spec)
        model = Line(bundle, tell).inputs(graph=graph).load()
        settings = CalibrationSettings(images.algorithm, images.asked, asked.batch)
        job = Job(
            verb="calibrate",
            made_of={
                "weights of the FP32 graph": graph_identity(model),
                "card": digest_json(Taken.of(spec).model_dump(mode="json")),
            },
            data=images.dataset.name,
            data_sha256=listing_digest(images.dataset),
            samples=len(images.dataset),
            options={
                "algorithm": images.algorithm.model_dump(mode="json"),
                "--calib-num": images.asked,
                "batch": batch_of(graph.inputs, asked.batch),
            },
            versions=versions(),
        )
        yield Calibration(job, model, graph.inputs, spec, images.dataset, settings)


def calibrate_shard(
    options: ExportOptions,
    asked: CalibrationOptions,
    shard: Shard,
    tell: Progress,
    *,
    earlier: Part | None = None,
) -> Part:
    """The part of one shard of the images; ``earlier`` if it is that already. Raises as ``quant.calibrate.calibrate``."""
    with opened_calibration(options, asked, tell) as calibration:
        return earlier_or_made(
            earlier,
            calibration.job,
            shard,
            tell,
            lambda: seen_part(calibration, _planned(calibration, tell), shard, tell),
        )


def _planned(calibration: Calibration, tell: Progress) -> tuple[Plan, ir.Model]:
    of = calibration
    maxima, reach = equalized_by(of.model, of.inputs, of.spec, of.dataset, of.settings, tell)
    return plan_of(of.model, of.spec, of.settings.algorithm, maxima, reach)


def seen_part(calibration: Calibration, planned: tuple[Plan, ir.Model], shard: Shard, tell: Progress) -> Part:
    """The part of a shard. Raises as ``quant.calibrate.watched``."""
    started = time.perf_counter()
    plan, prepared = planned
    of, span = calibration, calibration.span(shard)
    audit = Audit(of.dataset, of.spec, of.settings.asked)
    seen = watched(plan, prepared, of.inputs, of.spec, of.dataset, of.settings, span, audit, tell)
    channels = {
        f"{kind}{place}": values
        for kind, channels in (("maxima", plan.maxima), ("reach", plan.reach))
        for place, values in enumerate(channels.values())
    }
    facts = CalibrationFacts(
        maxima=tuple(plan.maxima),
        reach=tuple(plan.reach),
        plan=plan.digest,
        files=of.dataset.take(span).file_digests,
        noted=audit.noted,
        near_bits=audit.fingerprints.near_bits,
    )
    arrays = {**seen.arrays(), **audit.fingerprints.arrays(), **channels}
    return Part.made(of.job, shard, time.perf_counter() - started, facts, arrays)


def merge_calibration(
    options: ExportOptions, asked: CalibrationOptions, output: Path, tell: Progress, *, collect: Collect
) -> Ranges:
    """Writes the ranges by the parts of all images, equal in every byte to those of one run on such a machine.

    ``collect`` gives the checked parts of a job in order. Raises as ``line.export.calibrate`` and ``shards.collect.collect``;
    UsageError where the shards saw differently equalized graphs.
    """
    require_places(output)
    with opened_calibration(options, asked, tell) as of:
        parts = collect(of.job)
        tell.begin("calibrate")
        started = time.perf_counter()
        tell.update(f"merges {len(parts)} parts")
        plan = _plan_in(parts, of)
        seen, audit = unseen(plan, of.settings.algorithm), Audit(of.dataset, of.spec, of.settings.asked)
        digests: list[str] = []
        for part in parts:
            facts, span = part.facts_as(CalibrationFacts), of.span(part.header.shard)
            _require_places_of(facts.noted, span, part)
            try:
                seen.merge_arrays(part.arrays, len(facts.noted.used), [*plan.means.values()])
                audit.extend(facts.noted, part.arrays, facts.near_bits)
            except (KeyError, ValueError) as error:
                raise part.other_content() from error
            check_files(part, facts.files, of.dataset, span)
            digests += facts.files
        check_unreadable(audit.noted.unreadable, of.dataset, len(of.dataset))
        digest = joined_digest(digests) if of.dataset.files else of.dataset.digest
        del parts
        ranges = concluded(of.model, of.inputs, of.spec, of.dataset, of.settings, plan, seen, audit, digest, None, tell)
        tell.end("calibrate", time.perf_counter() - started, reused=False)
    ranges.write(output)
    tell_of_ranges(ranges, tell)
    return ranges


def calibrate_on(
    options: ExportOptions,
    asked: CalibrationOptions,
    output: Path,
    tell: Progress,
    *,
    cluster: Cluster,
    fresh: bool = False,
    allow_mixed_cpus: bool = False,
) -> Ranges:
    """The same by the workers of a cluster, which need the network and the images at the same paths. Parts are kept in the
    user's cache folder. Raises as ``merge_calibration`` and ``run_shards``.
    """
    cluster.begin(__name__)
    model = Path(options.model)
    far = replace(options, model=str(model.absolute())) if model.exists() else options
    images = asked.images.absolute() if asked.images is not None and asked.images.exists() else asked.images
    absolute = asked.model_copy(update={"images": images})

    def collect(job: Job) -> Sequence[Part]:
        batch = job.options["batch"]
        assert isinstance(batch, int)  # the job was made here, with this option
        make = partial(part_of_worker, far, absolute, job)
        shards = image_shards(job.samples, batch, SHARD_IMAGES)
        return parts_by(
            cluster,
            job,
            shards,
            make,
            tell,
            fresh=fresh,
            allow_mixed_cpus=allow_mixed_cpus,
            here=machine_kind(),
        )

    return merge_calibration(options, asked, output, tell, collect=collect)


def part_of_worker(options: ExportOptions, asked: CalibrationOptions, job: Job, shard: Shard) -> bytes:
    """The part of a shard, on one thread of a worker, which keeps the prepared graph for the next shard.

    Raises UsageError where this machine has another network, other images or other packages than whoever asks.
    """
    with cpu.limited(1):
        calibration, planned = held(job, (options, asked), partial(_opened, options, asked, job))
        return seen_part(calibration, planned, shard, Silent()).encode()


@contextmanager
def _opened(
    options: ExportOptions, asked: CalibrationOptions, job: Job
) -> Iterator[tuple[Calibration, tuple[Plan, ir.Model]]]:
    with opened_calibration(options, asked, Silent()) as calibration:
        check_job(job, calibration.job, "this worker's share")
        yield calibration, _planned(calibration, Silent())


def _plan_in(parts: Sequence[Part], of: Calibration) -> Plan:
    """The plan that all parts followed. Raises UsageError if they did not follow one, IntegrityError for another content."""
    first, *others = parts
    facts = first.facts_as(CalibrationFacts)
    for part in others:
        if part.facts_as(CalibrationFacts).plan != facts.plan:
            raise UsageError(
                f"{first.name} and {part.name} were measured in graphs that were equalized differently: the processors of "
                f"their machines round differently ({first.header.cpu}; {part.header.cpu})",
                advice="make the parts on machines of one kind, or all with --no-equalize",
            )
    maxima, reach = (
        {name: _channels(first, f"{kind}{place}") for place, name in enumerate(names)}
        for kind, names in (("maxima", facts.maxima), ("reach", facts.reach))
    )
    try:
        plan, _ = plan_of(of.model, of.spec, of.settings.algorithm, maxima, reach)
    except (KeyError, ValueError) as error:
        raise first.other_content() from error
    if plan.digest != facts.plan:
        raise first.other_content()
    return plan


def _channels(part: Part, name: str) -> NDArray[np.float32]:
    values = part.arrays.get(name)
    if values is None or values.dtype != np.float32 or values.ndim != 1:
        raise part.other_content()
    return values


def _require_places_of(noted: Noted, span: range, part: Part) -> None:
    """Raises IntegrityError unless these are places of the shard, and each image is used or unreadable."""
    inside = [place in span for of in (noted.used, noted.constant, noted.clipped, noted.enlarged) for place in of]
    if not all(inside) or len({*noted.used}) != len(noted.used) or len(noted.used) + len(noted.unreadable) != len(span):
        raise part.other_content()

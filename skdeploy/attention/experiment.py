"""The paper's experiment (Li et al., section 4.4): does a unit choose larger kernels for larger objects?

The object in the middle of each image is enlarged step by step, and each unit's attention is recorded: for every scale, how
much more the larger kernel gets than the smallest. FP32, FP16 and INT8 see the same images, so what they do differently is
what the precision does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from skdeploy.attention.enlarge import DEFINITION, PAPER_SCALES, check_scales, enlarged
from skdeploy.attention.gates import AttentionReader, Gate, find_gates
from skdeploy.attention.report import AttentionReport, MeasuredGraph
from skdeploy.attention.tally import Tally
from skdeploy.backends.onnxruntime import load_graph
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.evidence import keep_evidence
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.runners import require_fp32_graph
from skdeploy.core.architecture import DescribedSpec
from skdeploy.core.errors import IntegrityError, UsageError
from skdeploy.core.precision import PRECISIONS, Precision
from skdeploy.core.progress import Progress, Silent
from skdeploy.core.spec import ModelSpec
from skdeploy.images.audit_report import Unreadable
from skdeploy.images.dataset import EVALUATION, check_count, default_dataset, open_dataset
from skdeploy.images.decoding import Pixels
from skdeploy.images.feeds import RUN_BATCH
from skdeploy.images.reading import read_crops
from skdeploy.images.selection import select
from skdeploy.zoo.assumed import require_preprocessing

if TYPE_CHECKING:
    import onnx_ir as ir

EVIDENCE: Final = "attention"
DEFAULT_IMAGES: Final = 500
MAX_BATCH: Final = 256
BATCH_PIXELS: Final = RUN_BATCH * 224 * 224  # RUN_BATCH is for images of 224 x 224; small ones go together
STAGE_AND_BLOCK: Final = re.compile(r"stages\.(\d+)\.(\d+)")

# The crops of all images at one scale, by their number in the data set.
Read = Callable[[float], Iterable[tuple[int, Pixels]]]


@dataclass(frozen=True)
class Subject:
    """A graph to measure, and what the report calls it."""

    measured: MeasuredGraph
    model: ir.Model


def attention_of(
    bundle: Bundle,
    data: Path | None = None,
    *,
    scales: Sequence[float] = PAPER_SCALES,
    num_images: int = DEFAULT_IMAGES,
    profile: Sequence[str] = (),
    also: Sequence[Bundle] = (),
    assume_imagenet: bool = False,
    output: Path | None = None,
    progress: Progress | None = None,
) -> AttentionReport:
    """Measures the FP32 graph of a bundle and its last one, and the last ones of ``also``, other precisions of the network.

    ``data``: images (see ``open_dataset``), of which ``num_images`` are used, a balanced choice; default: the card's own.
    Preprocessing that is only assumed is refused with them, unless ``assume_imagenet`` confirms it.
    ``profile``: units, by module or as in the paper, whose channel profiles are kept; default: the last of each width. The
    report is kept in the bundle as the evidence ``attention``, or in the file ``output``.

    Raises UsageError: no selective kernel units, fewer than two images, scales that make no sense, an unknown unit, a bundle
    of another network. IntegrityError: an altered artifact. CalibrationError: too many unreadable images. ParityError:
    attention that is not finite or does not sum to 1.
    """
    tell = progress or Silent()
    check_count(num_images, "--num-images")
    spec = bundle.manifest.model
    if data is not None or assume_imagenet:
        judged = {str(each.folder): each.manifest.model for each in (bundle, *also)}
        for note in require_preprocessing(judged, assume_imagenet):
            tell.note(note)
    ordered = check_scales(scales, spec)
    artifacts = _graphs_of(bundle)
    graphs = [(bundle, artifact) for artifact in artifacts] + [_last_of(other, bundle) for other in also]
    subjects = _named(sorted(graphs, key=_by_precision))
    gates = find_gates(subjects[0].model)
    if not gates:
        raise UsageError(
            f"{bundle.folder} has no attention to measure: {_why_none(spec)}",
            advice='the experiment is for selective kernel units with fuse = "attention"',
        )
    profiled = _units_to_profile(profile, gates, spec)

    dataset = select(
        open_dataset(data, archive=EVALUATION, spec=spec) if data is not None else default_dataset(spec, num_images),
        num_images,
        seed=0,
    )
    if len(dataset) < 2:
        raise UsageError(
            f"{dataset.name} has {len(dataset)} image; the experiment needs at least two",
            advice="give more images with --data, or a larger --num-images",
        )
    unreadable: dict[str, Unreadable] = {}

    def passed_over(image: Unreadable) -> None:
        if image.name not in unreadable:  # each scale reads the files again
            unreadable[image.name] = image
            tell.note(f"left out {image.name}: {image.reason}")

    interpolated: set[int] = set()

    def read(scale: float) -> Iterator[tuple[int, Pixels]]:
        for index, crop in read_crops(dataset, enlarged(spec, scale), passed_over):
            if scale == ordered[-1] and crop.scale > 1:
                interpolated.add(index)
            yield index, crop.pixels

    tallies, images = measure(subjects, gates, spec, read, ordered, progress=tell)
    ends = {0: ordered[0], len(ordered) - 1: ordered[-1]}
    names = [subject.measured.name for subject in subjects]
    report = AttentionReport(
        model=spec.name,
        dataset=dataset.name,
        dataset_sha256=dataset.digest,
        images=images,
        unreadable=tuple(unreadable.values()),
        enlargement=DEFINITION,
        interpolation=spec.preprocess.interpolation,
        interpolated=len(interpolated) / images,
        scales=ordered,
        sizes=tuple(enlarged(spec, scale).shorter_side for scale in ordered),
        graphs=tuple(subject.measured for subject in subjects),
        units=tuple(
            tally.unit(spec, paper_name(gate.unit, spec), names, ends if gate.unit in profiled else {})
            for gate, tally in zip(gates, tallies, strict=True)
        ),
    )
    keep_evidence(bundle, EVIDENCE, report, artifacts, tell, output)
    return report


def measure(
    subjects: Sequence[Subject],
    gates: Sequence[Gate],
    spec: ModelSpec,
    read: Read,
    scales: Sequence[float],
    *,
    batch: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[Tally], int]:
    """Runs all graphs on the same crops, scale by scale: a tally for each gate, and the number of images.

    One batch of crops is held at a time. Raises IntegrityError if another scale gives other images.
    """
    tell = progress or Silent()
    size = batch or min(MAX_BATCH, max(RUN_BATCH, BATCH_PIXELS // spec.places))
    tallies = [Tally(gate, len(subjects), len(scales)) for gate in gates]
    first: list[int] = []
    with ExitStack() as stack:
        readers = [
            stack.enter_context(AttentionReader(s.model, gates, f"{s.measured.bundle}/{s.measured.artifact}"))
            for s in subjects
        ]
        for number, scale in enumerate(scales):
            seen: list[int] = []
            crops = iter(read(scale))
            while chunk := list(islice(crops, size)):
                seen += [index for index, _ in chunk]
                tell.update(f"scale {scale:g}, image {len(seen)}")
                found = [reader.read([pixels for _, pixels in chunk], spec, size) for reader in readers]
                for gate, tally in zip(gates, tallies, strict=True):
                    tally.add(number, [attention[gate.unit] for attention in found])
            if number and seen != first:
                raise IntegrityError(
                    f"scale {scale:g} was measured on {len(seen)} images, but scale {scales[0]:g} on "
                    f"{len(first)} others",
                    advice="the images changed while they were read: run the same command again",
                )
            first = seen
    return tallies, len(first)


def paper_name(unit: str, spec: ModelSpec) -> str:
    """``stages.0.2`` is SK_2_3 in the paper, where conv1 is the first stage; empty for a unit without such a place."""
    place = STAGE_AND_BLOCK.fullmatch(unit)
    if place is None or not isinstance(spec.network, DescribedSpec):
        return ""
    return f"SK_{int(place[1]) + 2}_{int(place[2]) + 1}"


def _units_to_profile(asked: Sequence[str], gates: Sequence[Gate], spec: ModelSpec) -> set[str]:
    """The units with these names; without any, the last unit of each width, which is the last of a stage."""
    if not asked:
        return set({gate.channels: gate.unit for gate in gates}.values())
    known = {paper_name(gate.unit, spec): gate.unit for gate in gates} | {gate.unit: gate.unit for gate in gates}
    unknown = [name for name in asked if not name or name not in known]
    if unknown:
        names = ", ".join(gate.unit for gate in gates)
        raise UsageError(f"--profile {unknown[0]}: no unit has this name", advice=f"choose from: {names}")
    return {known[name] for name in asked}


def _graphs_of(bundle: Bundle) -> list[Artifact]:
    """The FP32 graph that the others are made from and, if it is another, the last graph."""
    graphs = bundle.graphs
    single = require_fp32_graph(bundle)
    return [single] if graphs[-1] is single else [single, graphs[-1]]


def _by_precision(graph: tuple[Bundle, Artifact]) -> int:
    """FP32, FP16, INT8; the bundle's own FP32 graph stays the first of its kind, for sorting is stable."""
    return list(PRECISIONS).index(graph[1].precision or Precision.FP32)


def _last_of(other: Bundle, bundle: Bundle) -> tuple[Bundle, Artifact]:
    """The last graph of another bundle. Raises UsageError unless both were made of the same network and weights."""
    ours, theirs = bundle.manifest, other.manifest
    same_weights = (ours.weights.sha256, ours.weights.seed) == (theirs.weights.sha256, theirs.weights.seed)
    if (ours.model.network, ours.model.input, ours.model.preprocess) != (
        theirs.model.network,
        theirs.model.input,
        theirs.model.preprocess,
    ) or not same_weights:
        raise UsageError(
            f"--also {other.folder} is not the same network as {bundle.folder}: it is {theirs.model.name}, "
            "with other weights, another input or another structure",
            advice="give bundles of the same network in other precisions",
        )
    return other, _graphs_of(other)[-1]


def _named(graphs: Sequence[tuple[Bundle, Artifact]]) -> list[Subject]:
    """Graphs called by their precision; by their bundle too where two have the same. Raises UsageError for one given twice."""
    precisions = [artifact.precision or Precision.FP32 for _, artifact in graphs]
    subjects: list[Subject] = []
    seen: set[str] = set()
    for (bundle, artifact), precision in zip(graphs, precisions, strict=True):
        if artifact.sha256 in seen:
            raise UsageError(
                f"--also {bundle.folder}: its graph {artifact.path} is already measured",
                advice="give bundles of the same network in other precisions",
            )
        seen.add(artifact.sha256)
        measured = MeasuredGraph(
            name=precision if precisions.count(precision) == 1 else f"{precision} {bundle.folder.name}",
            bundle=bundle.folder.name,
            artifact=artifact.path,
            precision=artifact.precision or Precision.FP32,
            sha256=artifact.sha256,
        )
        subjects.append(Subject(measured, load_graph(bundle.check(artifact))))
    return subjects


def _why_none(spec: ModelSpec) -> str:
    network = spec.network
    if not isinstance(network, DescribedSpec):
        return "no selective kernel unit was found in its FP32 graph"
    if len(network.selective_kernel.branches) == 1:
        return f"the units of {spec.name} have one branch, so they have nothing to choose from"
    if network.selective_kernel.fuse == "sum":
        return f'the units of {spec.name} sum their branches (fuse = "sum")'
    return f"its FP32 graph has no gate of {spec.name} in the deploy form"

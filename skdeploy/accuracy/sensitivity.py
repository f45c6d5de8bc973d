"""``skdeploy sensitivity``: the units of an INT8 bundle on labelled images, pairs, or inputs alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx_ir as ir

from skdeploy.accuracy.own_metric import load_metric
from skdeploy.accuracy.pairs_as_truth import PairsAsTruth
from skdeploy.backends.onnxruntime import load_graph
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.contents import MODEL, RANGES
from skdeploy.bundle.evidence import keep_evidence
from skdeploy.bundle.folder import Bundle
from skdeploy.core.errors import UsageError
from skdeploy.core.files import digest_json
from skdeploy.core.progress import Progress, Silent
from skdeploy.core.spec import ClassOrder, ModelSpec
from skdeploy.images.dataset import EVALUATION, Pixels, check_count, default_dataset, open_dataset
from skdeploy.images.labels import as_the_network_counts
from skdeploy.images.pairs import has_targets
from skdeploy.images.reading import read_crops
from skdeploy.images.selection import select
from skdeploy.parity.tasks import require_classes, task_of
from skdeploy.quant.effect import Crops
from skdeploy.quant.ranges import Ranges, load_ranges
from skdeploy.quant.sensitivity import MeasuredUnits, SensitivityReport, measure_units, sensitivity_report
from skdeploy.quant.truth import ClassLabels, Truth
from skdeploy.quant.units import units_of
from skdeploy.zoo.assumed import require_preprocessing


@dataclass(frozen=True)
class SensitivityOptions:
    """Which samples, as ``skdeploy sensitivity`` takes them.

    ``data``: images (see ``open_dataset``), of which ``num_images`` are used, a balanced choice; default: the card's own. For
    networks without classes, and with ``metric``, ``data`` may be pairs (``images/pairs.py``). Without labels or targets there
    is only the SQNR. ``class_order``: how class folders are counted (``labels.py``).
    """

    data: Path | None
    num_images: int
    class_order: ClassOrder | None = None
    metric: str | None = None
    assume_imagenet: bool = False


@dataclass(frozen=True)
class Measurable:
    """All that the units of a bundle are measured with. ``samples_sha256`` identifies the samples and what should come out."""

    bundle: Bundle
    graph: Artifact
    recorded: Artifact
    keep_grouped: bool
    name: str
    samples_sha256: str
    crops: Crops
    truth: Truth | None

    @cached_property
    def model(self) -> ir.Model:
        return load_graph(self.bundle.check(self.graph))

    @cached_property
    def ranges(self) -> Ranges:
        return load_ranges(self.bundle.check(self.recorded))

    @property
    def spec(self) -> ModelSpec:
        return self.bundle.manifest.model

    def units(self) -> int:
        """How many units there are."""
        return len(units_of(self.model, self.spec, keep_grouped=self.keep_grouped))

    def measure(self, chosen: range, tell: Progress, *, whole: bool) -> MeasuredUnits:
        """See ``measure_units``."""
        return measure_units(
            self.model,
            self.spec,
            self.ranges,
            self.crops,
            self.truth,
            chosen,
            tell,
            keep_grouped=self.keep_grouped,
            whole=whole,
        )

    def report(self, found: Sequence[MeasuredUnits], tell: Progress, output: Path | None) -> SensitivityReport:
        """All units, kept as the evidence ``sensitivity``, or in the file ``output``."""
        report = sensitivity_report(self.model, self.spec, found, self.truth, self.name)
        keep_evidence(self.bundle, "sensitivity", report, [self.graph, self.recorded], tell, output)
        return report


def sensitivity_of(
    bundle: Bundle, options: SensitivityOptions, progress: Progress | None = None, *, output: Path | None = None
) -> SensitivityReport:
    """Measures the units of an INT8 bundle's FP32 graph with its own ranges, those that its export kept too.

    Kept as the evidence ``sensitivity``, or in the file ``output``. Grouped convolutions stay in the fallback if the export
    kept them there.

    Raises UsageError: a bundle without ranges, no images, labels that do not fit. IntegrityError: an altered artifact.
    CalibrationError: ranges of another network, unreadable images.
    """
    tell = progress or Silent()
    found = measurable(bundle, options, tell)
    return found.report([found.measure(range(found.units()), tell, whole=True)], tell, output)


def measurable(bundle: Bundle, options: SensitivityOptions, tell: Progress) -> Measurable:
    """The samples, read, and what they go through. Raises as ``sensitivity_of`` before it measures."""
    check_count(options.num_images, "--num-images")
    spec = bundle.manifest.model
    if options.class_order is not None:
        require_classes(spec, "--class-order")
    if options.metric is not None and options.data is None:
        raise UsageError("--metric requires --data", advice="add --data with pairs")
    if options.data is not None or options.assume_imagenet:
        for note in require_preprocessing({str(bundle.folder): spec}, options.assume_imagenet):
            tell.note(note)
    recorded = bundle.artifact(RANGES)
    graph = bundle.artifact(MODEL)
    if recorded is None or graph is None:
        missing = RANGES if recorded is None else "FP32 graph"
        raise UsageError(
            f"{bundle.folder} has no {missing}: it is a bundle of {bundle.manifest.precision}",
            advice="repeat its export with --int8 --calib DIR",
        )
    int8 = next((a for a in bundle.manifest.artifacts if a.precision and a.precision.integer), None)
    grouped = int8 is not None and bool(int8.provenance.options.get("keep_grouped"))
    return Measurable(bundle, graph, recorded, grouped, *_samples(spec, options, tell))


def _samples(spec: ModelSpec, options: SensitivityOptions, tell: Progress) -> tuple[str, str, Crops, Truth | None]:
    """The name of the samples, their digest, what goes into the network, and what should come out if that is known."""
    data, number = options.data, options.num_images
    own = load_metric(options.metric) if options.metric is not None else None
    if own is not None:
        tell.note(f"running your code: --metric {own.name} from {own.file}")
    classes = task_of(spec).has_classes
    if data is not None and (own is not None or (not classes and has_targets(data, spec))):
        pairs = PairsAsTruth.of(data, spec, own, number)
        for note in pairs.pairs.notes:
            tell.note(note)
        digest = digest_json([pairs.pairs.inputs.digest, pairs.pairs.targets_digest])
        return pairs.pairs.name, digest, pairs.crops, pairs
    dataset = open_dataset(data, archive=EVALUATION, spec=spec) if data is not None else default_dataset(spec, number)
    if classes and dataset.labels is not None:
        dataset = as_the_network_counts(dataset, spec, options.class_order)
    elif classes and dataset.unlabelled and data is not None:
        tell.note(f"accuracy is not measured, because {dataset.name} has no labels: {dataset.unlabelled}")
    for note in dataset.notes:
        tell.note(note)
    dataset = select(dataset, number, seed=0)
    tell.update(f"reads {len(dataset)} images")
    read = list(read_crops(dataset, spec, lambda image: tell.note(f"left out {image.name}: {image.reason}")))
    crops: Sequence[Pixels] = [crop.pixels for _, crop in read]
    labels = None if dataset.labels is None else dataset.labels.tolist()
    digest = digest_json([dataset.digest, labels])
    if not classes or dataset.labels is None:
        return dataset.name, digest, crops, None
    return dataset.name, digest, crops, ClassLabels(dataset.labels[[index for index, _ in read]])

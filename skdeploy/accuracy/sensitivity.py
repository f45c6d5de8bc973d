"""``skdeploy sensitivity``: the units of an INT8 bundle on labelled images, pairs, or inputs alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from skdeploy.accuracy.own_metric import load_metric
from skdeploy.accuracy.pairs_as_truth import PairsAsTruth
from skdeploy.backends.onnxruntime import load_graph
from skdeploy.bundle.contents import MODEL, RANGES
from skdeploy.bundle.evidence import keep_evidence
from skdeploy.bundle.folder import Bundle
from skdeploy.core.errors import UsageError
from skdeploy.core.progress import Progress, Silent
from skdeploy.core.spec import ClassOrder, ModelSpec
from skdeploy.images.dataset import EVALUATION, Pixels, check_count, default_dataset, open_dataset
from skdeploy.images.labels import as_the_network_counts
from skdeploy.images.pairs import has_targets
from skdeploy.images.reading import read_crops
from skdeploy.images.selection import select
from skdeploy.parity.tasks import require_classes, task_of
from skdeploy.quant.effect import Crops
from skdeploy.quant.ranges import load_ranges
from skdeploy.quant.sensitivity import SensitivityReport, measure_sensitivity
from skdeploy.quant.truth import ClassLabels, Truth
from skdeploy.zoo.assumed import require_preprocessing


def sensitivity_of(
    bundle: Bundle,
    data: Path | None,
    num_images: int,
    progress: Progress | None = None,
    *,
    class_order: ClassOrder | None = None,
    metric: str | None = None,
    assume_imagenet: bool = False,
    output: Path | None = None,
) -> SensitivityReport:
    """Measures the units of an INT8 bundle's FP32 graph with its own ranges, those that its export kept too.

    Kept as the evidence ``sensitivity``, or in the file ``output``.

    ``data``: images (see ``open_dataset``), of which ``num_images`` are used, a balanced choice; default: the card's own. For
    networks without classes, and with ``metric``, ``data`` may be pairs (``images/pairs.py``). Without labels or targets there
    is only the SQNR. ``class_order``: how class folders are counted (``labels.py``). Grouped convolutions stay in the fallback
    if the export kept them there.

    Raises UsageError: a bundle without ranges, no images, labels that do not fit. IntegrityError: an altered artifact.
    CalibrationError: ranges of another network, unreadable images.
    """
    tell = progress or Silent()
    check_count(num_images, "--num-images")
    spec = bundle.manifest.model
    if class_order is not None:
        require_classes(spec, "--class-order")
    if metric is not None and data is None:
        raise UsageError("--metric requires --data", advice="add --data with pairs")
    if data is not None or assume_imagenet:
        for note in require_preprocessing({str(bundle.folder): spec}, assume_imagenet):
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
    name, crops, truth = _samples(spec, data, num_images, class_order, metric, tell)
    report = measure_sensitivity(
        load_graph(bundle.check(graph)),
        spec,
        load_ranges(bundle.check(recorded)),
        crops,
        truth,
        keep_grouped=int8 is not None and bool(int8.provenance.options.get("keep_grouped")),
        dataset=name,
        progress=progress,
    )
    keep_evidence(bundle, "sensitivity", report, [graph, recorded], tell, output)
    return report


def _samples(
    spec: ModelSpec, data: Path | None, number: int, order: ClassOrder | None, metric: str | None, tell: Progress
) -> tuple[str, Crops, Truth | None]:
    """The name of the samples, what goes into the network, and what should come out if that is known."""
    own = load_metric(metric) if metric is not None else None
    if own is not None:
        tell.note(f"running your code: --metric {own.name} from {own.file}")
    classes = task_of(spec).has_classes
    if data is not None and (own is not None or (not classes and has_targets(data, spec))):
        pairs = PairsAsTruth.of(data, spec, own, number)
        for note in pairs.pairs.notes:
            tell.note(note)
        return pairs.pairs.name, pairs.crops, pairs
    dataset = open_dataset(data, archive=EVALUATION, spec=spec) if data is not None else default_dataset(spec, number)
    if classes and dataset.labels is not None:
        dataset = as_the_network_counts(dataset, spec, order)
    elif classes and dataset.unlabelled and data is not None:
        tell.note(f"accuracy is not measured, because {dataset.name} has no labels: {dataset.unlabelled}")
    for note in dataset.notes:
        tell.note(note)
    dataset = select(dataset, number, seed=0)
    tell.update(f"reads {len(dataset)} images")
    read = list(read_crops(dataset, spec, lambda image: tell.note(f"left out {image.name}: {image.reason}")))
    crops: Sequence[Pixels] = [crop.pixels for _, crop in read]
    if not classes or dataset.labels is None:
        return dataset.name, crops, None
    return dataset.name, crops, ClassLabels(dataset.labels[[index for index, _ in read]])

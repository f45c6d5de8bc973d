"""Parity of a whole bundle: every artifact, each on the backend that runs it, against one reference."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from skdeploy.backends import onnxruntime
from skdeploy.backends.metrics import compare_values, largest
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.runners import backend_of, first_fp32_graph, open_artifact
from skdeploy.core.errors import DependencyError, IntegrityError
from skdeploy.core.progress import Progress
from skdeploy.core.spec import ModelSpec, Precision, Tolerance
from skdeploy.images.dataset import Dataset, Pixels, normalise
from skdeploy.images.feeds import RUN_BATCH
from skdeploy.parity.compare import Subject, batch_invariance, compare, unproven
from skdeploy.parity.determinism import run_to_run
from skdeploy.parity.golden import Golden
from skdeploy.parity.reference import TORCH_REFERENCE as TORCH_REFERENCE
from skdeploy.parity.reference import Author, reference_of
from skdeploy.parity.report import MEMORY, BatchInvariance, Comparison, ParityReport, RunToRun, SuiteResult
from skdeploy.parity.suites import SYNTHETIC, has_dynamic_size, prepare, run_memory, run_suites
from skdeploy.parity.witness import Witness, kind_of, likely_cause, settles

if TYPE_CHECKING:
    from torch import nn

NOISE_IMAGES: Final = 4  # float64 is slow, and one number is wanted
REPEATED: Final = 2  # images that an export runs twice; a check that asks for suites runs a whole batch


def prove(
    bundle: Bundle,
    artifacts: tuple[Artifact, ...],
    dataset: Dataset,
    network: nn.Module | None,
    progress: Progress,
    *,
    suites: Sequence[str] | None = None,
    graphs_also_on: Sequence[tuple[str, Any]] = (),
    witness: Witness | None = None,
) -> ParityReport:
    """Compares every ONNX file and engine with torch's network, or with the first FP32 graph where there is no network.

    ``suites``, of ``suites.ALL``, are run on every artifact, besides the images. None is what an export has time for: one image
    of each synthetic suite, on what is deployed, the last graph and engines. These are also run twice on the same batch.

    ``witness``: what the author's code computes, or has computed and saved. The artifacts are then compared with that; a golden
    file takes the place of the images too, but for the suites and for whether runs and batches agree.

    ``graphs_also_on``: backends, with their options, that every ONNX file runs on too, besides ONNX Runtime on the CPU.

    An engine that cannot run here is recorded as unproven, with the reason. Raises IntegrityError, UsageError for unreadable
    images, ParityError if the reference itself is not finite, DependencyError without ONNX Runtime or a backend that was asked
    for, EngineError if that one does not run a graph.
    """
    spec = bundle.manifest.model
    runnable = [artifact for artifact in artifacts if artifact.format in ("onnx", "engine")]
    pixels = dataset.load(spec)
    base = first_fp32_graph(runnable)
    if network is None and base is None:
        raise IntegrityError(f"{bundle.folder} holds no FP32 graph to compare with", advice="run the export again")
    progress.update("reference")
    author = witness if isinstance(witness, Author) else None
    golden = witness if isinstance(witness, Golden) else None
    reference = reference_of(bundle, base, network, author)
    expected = reference.outputs(pixels, spec)
    seen = golden or dataset
    fed, wanted = (pixels, expected) if golden is None else (golden.fed(spec), golden.outputs)
    prepared = prepare(
        SYNTHETIC if suites is None else suites,
        dataset,
        spec,
        reference,
        brief=suites is None,
        dynamic_size=any(has_dynamic_size(artifact.inputs) for artifact in runnable),
    )
    last_graph = [artifact for artifact in runnable if artifact.format == "onnx"][-1]
    comparisons: list[Comparison] = []
    results: list[SuiteResult] = []
    repeated: list[RunToRun] = []
    invariance: BatchInvariance | None = None
    runs: list[tuple[Artifact, str, Any]] = [(artifact, backend_of(artifact), None) for artifact in runnable]
    runs += [(artifact, *where) for where in graphs_also_on for artifact in runnable if artifact.format == "onnx"]
    for artifact, runs_on, gpu in runs:
        precision = artifact.precision or Precision.FP32
        tolerance = tolerance_of(spec, precision)
        who = Subject(artifact.path, runs_on, precision, tolerance)
        progress.update(f"{artifact.path} on {runs_on}")
        try:
            session = open_artifact(bundle, artifact, runs_on, gpu)
        except DependencyError as error:
            if artifact.format == "onnx":  # runs wherever skdeploy is whole: without it, nothing would be proven
                raise
            comparisons.append(unproven(who, error))
            continue
        deployed = artifact is last_graph or artifact.format == "engine"
        with session:
            comparisons.append(compare(session, fed, wanted, spec, who, seen.name_of))
            if comparisons[-1].verdict != "pass":
                continue
            if suites is not None or deployed:
                results += run_suites(session, prepared, largest(expected), artifact.inputs, who, progress)
            if suites is not None and MEMORY in suites:
                results.append(run_memory(session, pixels, spec, who))
            if deployed:
                repeated.append(run_to_run(session, pixels, spec, who, REPEATED if suites is None else RUN_BATCH))
            if artifact is last_graph and runs_on == onnxruntime.NAME:
                progress.update(f"{artifact.path}, batch by batch")
                invariance = batch_invariance(
                    session, pixels, spec, artifact=artifact.path, tolerance=tolerance.max_rel_error
                )
    report = ParityReport(
        reference=reference.name if golden is None else golden.reference,
        dataset=seen.name,
        dataset_sha256=dataset.digest if golden is None else golden.sha256,
        images=len(fed),
        comparisons=tuple(comparisons),
        batch_invariance=invariance,
        suites=tuple(results),
        run_to_run=tuple(repeated),
        reference_kind=kind_of(witness, network is not None),
        settles=settles(witness),
        suites_reference=reference.name if golden is not None and results else "",
        chosen=dataset.chosen if golden is None else "",
    )
    if witness is not None:
        return report.model_copy(update={"likely_cause": likely_cause(witness, report, bundle.manifest, network)})
    if network is None or not report.failures:
        return report
    progress.update("why: torch in float64")
    return report.model_copy(update={"reference_sqnr_db": _reference_sqnr_db(network, pixels[:NOISE_IMAGES], spec)})


def _reference_sqnr_db(network: nn.Module, pixels: Pixels, spec: ModelSpec) -> float:
    """SQNR of the network's float32 outputs against its float64 ones: how much of its own rounding it amplifies."""
    import torch

    images = torch.from_numpy(normalise(pixels, spec.preprocess))
    with torch.inference_mode():
        rounded = network(images).double()
        exact = copy.deepcopy(network).double()(images.double())
    return compare_values(exact.numpy(), rounded.numpy()).sqnr_db


def tolerance_of(spec: ModelSpec, precision: Precision) -> Tolerance:
    """The card's tolerance for a precision, or the precision's own if the card gives none."""
    return spec.tolerance.get(precision, precision.tolerance)

"""Parity of a whole bundle: every artifact, each on the backend that runs it, against one reference."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Final

from skdeploy.backends import onnxruntime
from skdeploy.backends import torch as torch_backend
from skdeploy.backends.base import Array, Session, backend
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle
from skdeploy.errors import CardError, DependencyError, IntegrityError, ParityError
from skdeploy.parity.compare import batch_invariance, check_outputs, compare, run_images, unproven
from skdeploy.parity.metrics import compare_logits
from skdeploy.parity.report import BatchInvariance, Comparison, ParityReport
from skdeploy.progress import Progress
from skdeploy.quant.dataset import Dataset, Pixels, normalise
from skdeploy.spec import ModelSpec, Precision, Tolerance

if TYPE_CHECKING:
    from torch import nn

NOISE_IMAGES: Final = 4  # float64 is slow, and one number is wanted
TORCH_REFERENCE: Final = "torch float32, training form"


def prove(
    bundle: Bundle, artifacts: tuple[Artifact, ...], dataset: Dataset, network: nn.Module | None, progress: Progress
) -> ParityReport:
    """Compares every ONNX file and engine with torch's network, or with the first FP32 graph where there is no network.

    An engine that cannot run here is recorded as unproven, with the reason. Raises IntegrityError, UsageError for unreadable
    images, ParityError if the reference itself is not finite, DependencyError without ONNX Runtime.
    """
    spec = bundle.manifest.model
    runnable = [artifact for artifact in artifacts if artifact.format in ("onnx", "engine")]
    pixels = dataset.load(spec)
    base = next((a for a in runnable if a.format == "onnx" and a.precision is Precision.FP32), None)
    if network is None and base is None:
        raise IntegrityError(f"{bundle.folder} holds no FP32 graph to compare with", advice="run the export again")
    progress.update("reference")
    reference, name = _reference(bundle, base, pixels, network)

    comparisons: list[Comparison] = []
    invariance: BatchInvariance | None = None
    last_graph = [artifact for artifact in runnable if artifact.format == "onnx"][-1]
    for artifact in runnable:
        precision = artifact.precision or Precision.FP32
        tolerance = tolerance_of(spec, precision)
        runs_on = backend_of(artifact)
        progress.update(f"{artifact.path} on {runs_on}")
        try:
            session = _open(bundle, artifact)
        except DependencyError as error:
            if artifact.format == "onnx":  # runs wherever skdeploy is whole: without it, nothing would be proven
                raise
            comparisons.append(unproven(artifact.path, runs_on, precision, error))
            continue
        with session:
            comparisons.append(
                compare(
                    session,
                    pixels,
                    reference,
                    spec,
                    artifact=artifact.path,
                    backend=runs_on,
                    precision=precision,
                    tolerance=tolerance,
                )
            )
            if artifact is last_graph and comparisons[-1].verdict == "pass":
                progress.update(f"{artifact.path}, batch by batch")
                invariance = batch_invariance(
                    session, pixels, spec, artifact=artifact.path, tolerance=tolerance.max_rel_error
                )
    report = ParityReport(
        reference=name,
        dataset=dataset.name,
        dataset_sha256=dataset.digest,
        images=len(pixels),
        comparisons=tuple(comparisons),
        batch_invariance=invariance,
    )
    if network is None or not report.failures:
        return report
    progress.update("why: torch in float64")
    return report.model_copy(update={"reference_sqnr_db": _reference_sqnr_db(network, pixels[:NOISE_IMAGES], spec)})


def _reference_sqnr_db(network: nn.Module, pixels: Pixels, spec: ModelSpec) -> float:
    """SQNR of the network's float32 logits against its float64 ones: how much of its own rounding it amplifies."""
    import torch

    images = torch.from_numpy(normalise(pixels, spec.preprocess))
    with torch.inference_mode():
        rounded = network(images).double()
        exact = copy.deepcopy(network).double()(images.double())
    return compare_logits(exact.numpy(), rounded.numpy(), tolerance_of(spec, Precision.FP32)).sqnr_db


def tolerance_of(spec: ModelSpec, precision: Precision) -> Tolerance:
    """The card's tolerance for a precision. Raises CardError if it gives none."""
    if precision not in spec.tolerance:
        raise CardError(
            f"the card {spec.name} gives no tolerance for {precision}", advice=f"add [tolerance.{precision}]"
        )
    return spec.tolerance[precision]


def backend_of(artifact: Artifact) -> str:
    """The backend that runs an artifact; an engine says which compiler made it."""
    return str(artifact.details["compiler"]) if artifact.format == "engine" else onnxruntime.NAME


def _reference(bundle: Bundle, base: Artifact | None, pixels: Pixels, network: nn.Module | None) -> tuple[Array, str]:
    spec = bundle.manifest.model
    if network is not None:
        session: Session = torch_backend.open_session(network, spec)
        name = TORCH_REFERENCE
    else:
        assert base is not None  # prove checked
        session = onnxruntime.open_session(bundle.check(base))
        name = f"{base.path} on onnxruntime"
    with session:
        outputs = run_images(session, pixels, spec)
    problems = check_outputs(outputs, len(pixels), spec)
    if problems:
        raise ParityError(
            f"the reference, {name}, is not usable: {problems[0]}", advice="check the weights and the images"
        )
    return outputs["logits"], name


def _open(bundle: Bundle, artifact: Artifact) -> Session:
    path = bundle.check(artifact)
    if artifact.format == "engine":
        session: Session = backend(backend_of(artifact)).open_session(path, sha256=artifact.sha256)
        return session
    return onnxruntime.open_session(path)

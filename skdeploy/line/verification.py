"""``skdeploy verify``: digests, parity measured again here, and what devices elsewhere have recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from skdeploy.accuracy.facts import read_facts, with_receipts
from skdeploy.accuracy.verdict import Verdict, decide_verdict, next_after_failed_parity
from skdeploy.backends import DEFAULT
from skdeploy.backends.base import options_of
from skdeploy.bundle import contents
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.contents import PARITY
from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.bundle.receipts import RanOn, Receipt, ReceiptVerdict, read_receipts, require_receipts, write_receipt
from skdeploy.bundle.runners import check_graph_backend
from skdeploy.bundle.served import Served
from skdeploy.checkpoints.load import Network
from skdeploy.core.errors import DependencyError, ParityError, UsageError
from skdeploy.core.files import digest_file
from skdeploy.core.progress import Progress, Silent
from skdeploy.core.spec import Frozen, Precision
from skdeploy.images.dataset import Dataset
from skdeploy.line.options import DEFAULT_IMAGES
from skdeploy.line.parity_images import parity_dataset
from skdeploy.parity.determinism import rebuild
from skdeploy.parity.prove import prove
from skdeploy.parity.report import Comparison, ParityReport, Rebuild, RunToRun, SuiteResult
from skdeploy.parity.suites import check_suites
from skdeploy.parity.tasks import tolerance_of
from skdeploy.parity.witness import after_proof, find_witness

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class VerifyOptions:
    """Options of ``skdeploy verify``, by the same names.

    ``images``: the card's own if None, ``num_images`` of them at most. ``suites``: names of ``parity.suites``, or ``all``; none
    means what an export runs. ``rebuild``: build each engine again, and compare. ``receipt``: write what was measured here.
    ``require_engine``: an engine that is verified neither here nor by a receipt is an error. ``backend``: another that graphs
    run on too; ``backend_options`` are its NAME=VALUE texts. ``reference``, ``golden``: what
    the artifacts are compared with in place of the bundle's own weights, ``parity/witness.py``.
    """

    images: Path | None = None
    num_images: int = DEFAULT_IMAGES
    suites: tuple[str, ...] = ()
    rebuild: bool = False
    receipt: bool = False
    require_engine: bool = False
    backend: str | None = None
    backend_options: tuple[str, ...] = ()
    reference: str | None = None
    golden: Path | None = None

    def graphs_also_on(self) -> tuple[tuple[str, Any], ...]:
        """The argument ``graphs_also_on`` of ``parity.prove``. Raises UsageError."""
        if self.backend is None:
            if self.backend_options:
                raise UsageError("--backend-option requires --backend")
            return ()
        options = options_of(check_graph_backend(self.backend), self.backend_options)
        return () if self.backend == DEFAULT else ((self.backend, options),)


class ParityReceipt(Frozen):
    """The content of a receipt of kind ``parity``: one artifact's part of a ParityReport."""

    reference: str
    dataset: str
    dataset_sha256: str
    images: int
    comparison: Comparison
    suites: Annotated[tuple[SuiteResult, ...], Field(strict=False)] = ()
    run_to_run: RunToRun | None = None
    rebuild: Rebuild | None = None


@dataclass(frozen=True)
class Verification:
    """The result of a verification. ``receipts`` are all of the bundle's, ``written`` those that were made now. Nothing is
    judged yet.
    """

    bundle: Bundle
    report: ParityReport
    receipts: tuple[Receipt, ...]
    written: tuple[Path, ...]
    seconds: float
    require_engine: bool = False

    @property
    def unverified_engines(self) -> tuple[Comparison, ...]:
        """Engines that did not run here and have no receipt of parity."""
        engines = {engine.path for engine in self.bundle.engines}
        return tuple(
            c for c in self.report.comparisons if c.artifact in engines and c.verdict == "unproven" and c.proof is None
        )

    @property
    def verdict(self) -> Verdict:
        """The verdict on the bundle, with what was measured now in place of what the export measured."""
        facts = read_facts(self.bundle)
        facts.parity = self.report
        facts.outdated = [name for name in facts.outdated if name != PARITY]
        return decide_verdict(facts)

    def check(self) -> None:
        """Raises ParityError, then, if engines are required, DependencyError for one that nothing has verified."""
        manifest, folder = self.bundle.manifest, self.bundle.folder
        evaluated = self.report.verdict == "fail" and read_facts(self.bundle).accuracy is not None
        self.report.check(next_after_failed_parity(manifest, folder, self.report, evaluated=evaluated))
        if manifest.verdict == "failed":
            raise ParityError(
                f"the export of {folder} failed parity, on others than {self.report.images_text}",
                advice=f"`skdeploy inspect {folder}` shows where; to decide on these, export again with --images",
            )
        missing = self.unverified_engines
        if self.require_engine and missing:
            raise DependencyError(
                "not verified here, and no receipt from a device that verified it:\n"
                + "\n".join(f"  {c.artifact}: {c.reason}" for c in missing),
                advice="run `skdeploy verify --receipt` on the device, and copy the bundle's receipts/ folder back",
            )


def verify(
    folder: Path,
    options: VerifyOptions,
    progress: Progress | None = None,
    *,
    connect: Callable[[Bundle], Served] | None = None,
) -> Verification:
    """Checks every digest of a bundle and every receipt, and measures parity again. Writes receipts if asked, else nothing.

    The reference is torch with the bundle's own weights, or its first FP32 graph where there is no torch or the bundle came
    from a graph or a module, which is said. ``connect`` finds an artifact on a server, which then runs there too.
    ``Verification.check`` judges. Raises IntegrityError, UsageError; DependencyError without ONNX Runtime, or without the
    compiler for ``rebuild``; ParityError if the reference itself is not finite; what ``connect`` raises.
    """
    begun = time.perf_counter()
    tell = progress or Silent()
    suites = check_suites(options.suites) if options.suites else None
    also = options.graphs_also_on()
    bundle = load_bundle(folder)
    if options.receipt:
        require_receipts(folder)
    tell.begin("digests")
    bundle.check_complete()
    bundle.check_all()
    read_receipts(bundle)  # before the long part: a broken one is told at once
    tell.end("digests", time.perf_counter() - begun, reused=False)
    engines = bundle.engines
    for option, given in (("--require-engine", options.require_engine), ("--rebuild", options.rebuild)):
        if given and not engines:
            raise UsageError(f"{folder} holds no engine, but {option} needs one", advice="export with --target")
    served = () if connect is None else (connect(bundle),)
    for note in (note for each in served for note in each.notes):
        tell.note(note)
    network = _network(bundle, tell)
    spec = bundle.manifest.model
    witness = find_witness(options.reference, options.golden, spec, _checkpoint(bundle, options), tell)

    tell.begin("parity")
    started = time.perf_counter()
    dataset = parity_dataset(bundle.manifest.model, options.images, options.num_images)
    _tell_of_other_images(bundle, dataset, tell)
    report = prove(
        bundle,
        bundle.manifest.artifacts,
        dataset,
        network,
        tell,
        suites=suites,
        graphs_also_on=also,
        witness=witness,
        served=served,
    )
    bundle.manifest = after_proof(bundle.manifest, report)  # for this verdict: nothing of it is written
    if options.rebuild:
        report = report.model_copy(update={"rebuilds": _rebuilt(bundle, engines, dataset, tell)})
    tell.end("parity", time.perf_counter() - started, reused=False)
    ran_on = {each.backend: each.ran_on for each in served}
    written = write_parity_receipts(bundle, report, ran_on) if options.receipt else ()
    receipts = read_receipts(bundle)
    return Verification(
        bundle=bundle,
        report=with_receipts(report, receipts),
        receipts=receipts,
        written=written,
        seconds=time.perf_counter() - begun,
        require_engine=options.require_engine,
    )


def write_parity_receipts(
    bundle: Bundle, report: ParityReport, ran_on: Mapping[str, RanOn] | None = None
) -> tuple[Path, ...]:
    """A receipt of each artifact that ran here, or where a backend ``ran_on``, in parity or not."""
    written = []
    for comparison in report.comparisons:
        artifact = bundle.artifact(comparison.artifact)
        if comparison.verdict == "unproven" or artifact is None:
            continue
        of = (artifact.path, comparison.backend)
        content = ParityReceipt(
            reference=report.reference,
            dataset=report.dataset,
            dataset_sha256=report.dataset_sha256,
            images=report.images,
            comparison=comparison,
            suites=tuple(suite for suite in report.suites if (suite.artifact, suite.backend) == of),
            run_to_run=next((run for run in report.run_to_run if (run.artifact, run.backend) == of), None),
            rebuild=next((again for again in report.rebuilds if again.artifact == artifact.path), None),
        )
        verdict: ReceiptVerdict = "fail" if _has_failed(content) else "pass"
        where = (ran_on or {}).get(comparison.backend)
        written.append(
            write_receipt(
                bundle, artifact, "parity", content, backend=comparison.backend, verdict=verdict, ran_on=where
            )
        )
    return tuple(written)


def _has_failed(content: ParityReceipt) -> bool:
    verdicts = [content.comparison.verdict, *(suite.verdict for suite in content.suites)]
    verdicts += [part.verdict for part in (content.run_to_run, content.rebuild) if part is not None]
    return "fail" in verdicts


def _network(bundle: Bundle, tell: Progress) -> nn.Module | None:
    weights = bundle.artifact(contents.WEIGHTS)
    if weights is None:
        tell.note(
            "compared with the bundle's own first graph, because the network came from an ONNX file or from "
            "code, not from a card"
        )
        return None
    try:
        return Network(bundle.manifest.model, bundle.check(weights)).module
    except DependencyError as error:
        tell.note(f"compared with the bundle's own FP32 graph, not torch: {error.message}")
        return None


def _checkpoint(bundle: Bundle, options: VerifyOptions) -> Path | None:
    """The checkpoint that the export was given, where it is still there as it was: ``--reference`` loads it by its own keys."""
    record = bundle.manifest.weights
    if options.reference is None or record.file is None or not Path(record.file).is_file():
        return None
    path = Path(record.file)
    return path if path.suffix != ".onnx" and digest_file(path) == record.sha256 else None


def _tell_of_other_images(bundle: Bundle, dataset: Dataset, tell: Progress) -> None:
    """The user's own images are not in the bundle: without --images, a check is on others than the export was."""
    before = read_facts(bundle).parity
    if before is not None and before.chosen in ("images", "calib", "data") and dataset.chosen != "images":
        tell.note(
            f"this check is on other {dataset.word}s than the export, which was decided on {before.images_text}; give those "
            "with --images to repeat it"
        )


def _rebuilt(bundle: Bundle, engines: Sequence[Artifact], dataset: Dataset, tell: Progress) -> tuple[Rebuild, ...]:
    spec = bundle.manifest.model
    pixels = dataset.load(spec)
    found = []
    for engine in engines:
        tell.update(f"{engine.path}, built again")
        tolerance = tolerance_of(spec, engine.precision or Precision.FP32)
        found.append(rebuild(bundle, engine, pixels, tolerance))
    return tuple(found)

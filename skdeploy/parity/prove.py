"""Parity of a whole bundle: every artifact, each on the backend that runs it, against one reference."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from functools import cached_property
from threading import Event
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from skdeploy.backends import onnxruntime
from skdeploy.backends.base import Array, Session
from skdeploy.backends.logits import run_images
from skdeploy.backends.metrics import Outputs, compare_outputs, largest
from skdeploy.bundle import contents
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.runners import backend_of, first_fp32_graph, open_artifact
from skdeploy.bundle.served import Served
from skdeploy.core.errors import DependencyError, IntegrityError
from skdeploy.core.progress import Progress
from skdeploy.core.spec import ModelSpec, Precision
from skdeploy.images.dataset import Dataset, Inputs, Pixels
from skdeploy.images.feeds import RUN_BATCH, batches_of, feeds_of
from skdeploy.parity.compare import BATCHES, Subject, batch_invariance, compare, unproven
from skdeploy.parity.determinism import run_to_run
from skdeploy.parity.golden import Golden
from skdeploy.parity.margins import NONE as NO_MARGINS
from skdeploy.parity.margins import Margins, margins_of
from skdeploy.parity.reference import TORCH_REFERENCE as TORCH_REFERENCE
from skdeploy.parity.reference import Author, Reference, reference_of
from skdeploy.parity.report import MEMORY, BatchInvariance, Comparison, Mend, ParityReport, RunToRun, SuiteResult
from skdeploy.parity.suites import SYNTHETIC, Prepared, has_dynamic_size, prepare, run_memory, run_suites
from skdeploy.parity.tasks import judged, task_of, tolerance_of
from skdeploy.parity.witness import Witness, kind_of, likely_cause, settles
from skdeploy.parity.worst_image import WorstImage
from skdeploy.zoo.outputs import tensors_given

if TYPE_CHECKING:
    from torch import nn

NOISE_IMAGES: Final = 4  # float64 is slow, and one number is wanted
REPEATED: Final = 2  # images that an export runs twice; a check that asks for suites runs a whole batch


class Proof:
    """Every ONNX file and engine against torch's network, or the first FP32 graph where there is no network.

    The reference is computed once, when the first artifact is examined, and each artifact is examined once, whenever that is.

    ``suites``, of ``suites.ALL``, are run on every artifact, besides the images. None is what an export has time for: one image
    of each synthetic suite, on what is deployed, the last graph and engines. These are also run twice on the same batch, and
    the last graph in ``batches`` of several sizes.

    ``witness``: what the author's code computes, or has computed and saved. The artifacts are then compared with that; a golden
    file takes the place of the images too, but for the suites and for whether runs and batches agree.

    ``artifacts`` gives those that the bundle has when the reference is computed: without a network the first FP32 graph must be
    one of them. ``network`` is called then too, unless the network runs ``elsewhere``. ``stopped``, once set by another thread,
    ends what is under way: CancelledError.
    """

    def __init__(
        self,
        bundle: Bundle,
        artifacts: Callable[[], Sequence[Artifact]],
        dataset: Dataset,
        network: Callable[[], nn.Module | None],
        progress: Progress,
        *,
        elsewhere: Callable[[ModelSpec], Session] | None = None,
        suites: Sequence[str] | None = None,
        batches: Sequence[int] = BATCHES,
        witness: Witness | None = None,
        stopped: Event | None = None,
    ) -> None:
        self.progress = progress
        self._bundle, self._spec, self._dataset, self._network = bundle, bundle.manifest.model, dataset, network
        self._artifacts, self._elsewhere = artifacts, elsewhere
        self._suites, self._batches, self._witness, self._stopped = suites, batches, witness, stopped
        self._golden = witness if isinstance(witness, Golden) else None
        self._found: dict[tuple[str, str, str, bool], _Found] = {}

    def compute_reference(self) -> None:
        """The outputs that all artifacts are compared with, unless they are there. Raises as ``prove``."""
        _ = self._against

    @cached_property
    def _against(self) -> _Against:
        """The outputs that artifacts are compared with."""
        self.progress.update("reference")
        artifacts = [artifact for artifact in self._artifacts() if artifact.format in ("onnx", "engine")]
        network, base = None if self._elsewhere else self._network(), first_fp32_graph(artifacts)
        if network is None and base is None and self._elsewhere is None:
            raise IntegrityError(
                f"{self._bundle.folder} holds no FP32 graph to compare with", advice="run the export again"
            )
        author = self._witness if isinstance(self._witness, Author) else None
        found = reference_of(self._bundle, base, network, author, self._elsewhere)
        reference = Reference(found.name, lambda spec: self._stoppable(found.open(spec)))
        pixels = self._dataset.load(self._spec)
        expected = reference.outputs(pixels, self._spec)
        prepared = prepare(
            SYNTHETIC if self._suites is None else self._suites,
            self._dataset,
            self._spec,
            reference,
            brief=self._suites is None,
            pixels=pixels,
            dynamic_size=any(has_dynamic_size(artifact.inputs) for artifact in artifacts),
        )
        golden = self._golden
        fed, wanted = (pixels, expected) if golden is None else (golden.fed(self._spec), golden.outputs)
        return _Against(reference.name, pixels, fed, wanted, prepared, largest(expected))

    @cached_property
    def _margins(self) -> Margins:
        """How far the reference's integers are from being others: of the first FP32 graph, by what decides them."""
        base = first_fp32_graph([artifact for artifact in self._artifacts() if artifact.format == "onnx"])
        if base is None or all(wanted.is_floating for wanted in self._spec.given):
            return NO_MARGINS
        return margins_of(self._bundle.check(base), self._against.fed, self._spec)

    def examine(
        self, artifact: Artifact, runs_on: str = "", options: Any = None, *, last: bool, served: Served | None = None
    ) -> _Found:
        """One artifact on its own backend, on another with its options, or ``served``. ``last``: it is the line's last graph.

        Raises what ``prove`` raises.
        """
        runs_on = runs_on or backend_of(artifact)
        key = (artifact.path, artifact.sha256, runs_on, last)
        if key not in self._found:
            self._found[key] = self._examined(artifact, runs_on, options, last=last, served=served)
        return self._found[key]

    def _examined(
        self, artifact: Artifact, runs_on: str, options: Any, *, last: bool, served: Served | None = None
    ) -> _Found:
        spec, suites, against = self._spec, self._suites, self._against
        precision = artifact.precision or Precision.FP32
        tolerance = tolerance_of(spec, precision)
        who = Subject(artifact.path, runs_on, precision, tolerance)
        self.progress.update(f"{artifact.path} on {runs_on}")
        try:
            opened = open_artifact(self._bundle, artifact, runs_on, options) if served is None else served.open()
            session = self._stoppable(opened)
        except DependencyError as error:
            if artifact.format == "onnx":  # runs wherever skdeploy is whole: without it, nothing would be proven
                raise
            return _Found(unproven(who, error))
        deployed = last or artifact.format == "engine"
        with session:
            outputs = run_images(session, against.fed, spec)
            named = (self._golden or self._dataset).name_of
            found = _Found(compare(outputs, against.wanted, spec, who, named, self._margins))
            found.worst = self._worst(found.comparison, outputs)
            if found.comparison.verdict != "pass":
                return found
            if suites is not None or deployed:
                found.suites += run_suites(
                    session, against.prepared, against.scale, artifact.inputs, who, self.progress
                )
            if suites is not None and MEMORY in suites:
                found.suites.append(run_memory(session, against.pixels, spec, who))
            if deployed:
                images = REPEATED if suites is None else RUN_BATCH
                found.run_to_run = run_to_run(session, against.pixels, spec, who, images)
            if last and runs_on == onnxruntime.NAME:
                self.progress.update(f"{artifact.path}, batch by batch")
                found.batch_invariance = batch_invariance(
                    session,
                    against.pixels,
                    outputs if self._golden is None else run_images(session, against.pixels, spec),
                    spec,
                    artifact=artifact.path,
                    tolerance=tolerance.max_rel_error,
                    batches=self._batches,
                )
        return found

    def _worst(self, c: Comparison, outputs: Outputs) -> WorstImage | None:
        """Show the worst image of an artifact, which the task's own figures name, or else the SQNR."""
        metrics, against, spec = c.metrics, self._against, self._spec
        image = (
            None if metrics is None else metrics.worst_image if metrics.figure_image is None else metrics.figure_image
        )
        if image is None:
            return None
        pictures = task_of(spec).pictures(against.wanted, judged(spec, outputs), image, spec)
        if pictures is None:
            return None
        named, golden = (self._golden or self._dataset).name_of(image), self._golden
        reference = against.name if golden is None else golden.reference
        return WorstImage(found=c.place, against=reference, image=named, pictures=pictures)

    def report(
        self,
        artifacts: Sequence[Artifact],
        graphs_also_on: Sequence[tuple[str, Any]] = (),
        served: Sequence[Served] = (),
    ) -> ParityReport:
        """All artifacts, each examined unless it was before. Raises as ``prove``."""
        runnable = [artifact for artifact in artifacts if artifact.format in ("onnx", "engine")]
        graphs = [artifact for artifact in runnable if artifact.format == "onnx"]
        against, witness, golden = self._against, self._witness, self._golden
        found = [self.examine(artifact, last=artifact is graphs[-1]) for artifact in runnable]
        found += [self.examine(graph, *where, last=graph is graphs[-1]) for where in graphs_also_on for graph in graphs]
        found += [self.examine(each.artifact, each.backend, last=True, served=each) for each in served]
        suites = tuple(result for each in found for result in each.suites)
        # With a reference from elsewhere, torch and its network are loaded only if there is something to explain.
        has_network = self._elsewhere is not None or self._network() is not None
        report = ParityReport(
            reference=against.name if golden is None else golden.reference,
            dataset=(golden or self._dataset).name,
            dataset_sha256=self._dataset.digest if golden is None else golden.sha256,
            images=len(against.fed),
            comparisons=tuple(each.comparison for each in found),
            batch_invariance=next((each.batch_invariance for each in found if each.batch_invariance), None),
            suites=suites,
            run_to_run=tuple(each.run_to_run for each in found if each.run_to_run),
            reference_kind=kind_of(witness, has_network),
            settles=settles(witness),
            suites_reference=against.name if golden is not None and suites else "",
            chosen=self._dataset.chosen if golden is None else "",
            sample=self._spec.sample_word,
            worst=_worst_of(found),
        )
        if witness is not None:
            cause = likely_cause(witness, report, self._bundle.manifest, self._network)
            return report.model_copy(update={"likely_cause": cause})
        if not report.failures:
            return report
        if (mend := self._mended(report, graphs)) is not None:
            report = report.model_copy(update={"mend": mend})
        if (network := self._network()) is None:
            return report
        self.progress.update("why: torch in float64")
        sqnr_db = _reference_sqnr_db(network, against.pixels[:NOISE_IMAGES], self._spec)
        return report.model_copy(update={"reference_sqnr_db": sqnr_db})

    def _mended(self, report: ParityReport, graphs: Sequence[Artifact]) -> Mend | None:
        """Find what must stay FP32, if the FP16 graph alone is out of parity and the reference holds for all of it."""
        half = next((graph for graph in graphs if graph.path == contents.HALF), None)
        single = next((graph for graph in graphs if graph.path == contents.MODEL), None)
        failed = [c for c in report.comparisons if c.verdict == "fail" and c.precision is Precision.FP32]
        if half is None or single is None or failed or not any(text.startswith(half.path) for text in report.failures):
            return None
        from skdeploy.parity.mend import Judged, find_mend  # rarely needed, and it takes onnx-ir

        self.progress.update("which modules must stay FP32")
        spec, against = self._spec, self._against
        who = Subject(half.path, onnxruntime.NAME, Precision.FP16, tolerance_of(spec, Precision.FP16))

        def judge(session: Session) -> Judged:
            found = compare(run_images(session, against.fed, spec), against.wanted, spec, who, margins=self._margins)
            if found.metrics is None:
                return Judged(passes=False, sqnr_db=-math.inf)
            suites = run_suites(session, against.prepared, against.scale, half.inputs, who, self.progress)
            finite = all(suite.metrics is not None or suite.note for suite in suites)
            passes = found.verdict == "pass" and all(suite.verdict != "fail" for suite in suites)
            return Judged(passes, (found.metrics.min_sqnr_db or 0.0) if finite else -math.inf)

        shown = [(against.fed, spec), *((suite.pixels, suite.spec) for suite in against.prepared if suite.expected)]
        feeds = [feeds for rows, of in shown for feeds in batches_of(rows, of, half.inputs, 1)]
        given = half.provenance.options.get("keep_fp32")
        keep = [str(pattern) for pattern in given] if isinstance(given, list) else []
        return find_mend(self._bundle.check(single), keep, judge, feeds)

    def _stoppable(self, session: Session) -> Session:
        return session if self._stopped is None else _Stoppable(session, self._stopped)


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
    served: Sequence[Served] = (),
) -> ParityReport:
    """A ``Proof`` of all artifacts of a bundle.

    ``graphs_also_on``: backends, with their options, that every ONNX file runs on too, besides ONNX Runtime on the CPU.
    ``served``: artifacts that run on a server too.

    An engine that cannot run here is recorded as unproven, with the reason. Raises IntegrityError, UsageError for unreadable
    images, ParityError if the reference itself is not finite, DependencyError without ONNX Runtime or a backend that was asked
    for, EngineError if that one does not run a graph.
    """
    proof = Proof(bundle, lambda: artifacts, dataset, lambda: network, progress, suites=suites, witness=witness)
    return proof.report(artifacts, graphs_also_on, served)


class _Against(NamedTuple):
    """``fed`` to every artifact, and the outputs that are ``wanted``; ``pixels`` and ``prepared`` suites for all else.

    ``scale`` is the largest value that the reference has on the images.
    """

    name: str
    pixels: Pixels
    fed: Pixels | Inputs
    wanted: Outputs
    prepared: list[Prepared]
    scale: float


@dataclass
class _Found:
    """Of one artifact on one backend."""

    comparison: Comparison
    worst: WorstImage | None = None
    suites: list[SuiteResult] = field(default_factory=list)
    run_to_run: RunToRun | None = None
    batch_invariance: BatchInvariance | None = None


def _worst_of(found: Sequence[_Found]) -> WorstImage | None:
    """The worst image of the artifact that is worst: of those that failed, or else of all, the one with the least SQNR."""

    def order(each: _Found) -> tuple[bool, float]:
        metrics = each.comparison.metrics
        least = math.inf if metrics is None else metrics.min_sqnr_db
        if metrics is not None and least is None:
            differing = [row.values - row.same for row in metrics.integers.values()]
            least = -max(differing) if differing else metrics.figures.get("psnr_db")
        return each.comparison.verdict != "fail", math.inf if least is None else least

    shown = [each for each in found if each.worst is not None]
    return min(shown, key=order).worst if shown else None


class _Stoppable(Session):
    """A session that does not run any more once it is ``stopped``."""

    def __init__(self, session: Session, stopped: Event) -> None:
        self.inputs, self.outputs = session.inputs, session.outputs
        self.profile = getattr(session, "profile", None)  # an engine's
        self._session, self._stopped = session, stopped

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self._stopped.is_set():
            raise CancelledError
        return self._session.run(feeds)

    def close(self) -> None:
        super().close()
        self._session.close()


def _reference_sqnr_db(network: nn.Module, pixels: Pixels, spec: ModelSpec) -> float | None:
    """SQNR of the network's float32 outputs against its float64 ones: how much of its own rounding it amplifies. None where it
    has no floating-point outputs."""
    import torch

    given = [torch.from_numpy(array) for array in feeds_of(pixels, spec, spec.taken).values()]
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in given]
    with torch.inference_mode():
        rounded = tensors_given(network(*given), spec, spec.name)
        exact = tensors_given(copy.deepcopy(network).double()(*wide), spec, spec.name)
    before, after = (
        {name: value.double().numpy() for name, value in made.items() if value.is_floating_point()}
        for made in (exact, rounded)
    )
    if not before:
        return None
    return compare_outputs(before, after).sqnr_db

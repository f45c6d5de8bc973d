"""The contents of ``headroom.json`` and ``parity.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal, TypeVar

from pydantic import Field

from skdeploy.backends.metrics import Metrics
from skdeploy.core.errors import ParityError, PrecisionError
from skdeploy.core.patterns import modules_pattern
from skdeploy.core.precision import FP32S_RANGE
from skdeploy.core.spec import Frozen, Precision, SampleWord
from skdeploy.images.dataset import Chosen
from skdeploy.parity.worst_image import WorstImage
from skdeploy.zoo.assumed import Settled

QUIET_DB: Final = 120.0  # of torch's float32: 15 dB under the trained sknet-fashion's, so about six times its error
# Two float32 runs that round differently are 3 dB further apart than one is from the exact result. Of 23 networks of other
# authors the worst graph, exact to 1e-13 in float64, was 12 dB further away than torch: ONNX Runtime adds up in longer rows.
ROUNDING_DB: Final = 15.0
MIN_HEADROOM: Final = 2.0  # images in the field are brighter and busier than the few that were measured


class TensorHeadroom(Frozen):
    """The largest magnitude of one tensor over all images, and 65504 divided by it.

    ``modules`` make or use it: with all of them in FP32, the tensor is never FP16.
    """

    tensor: str
    modules: Annotated[tuple[str, ...], Field(strict=False)]
    max_abs: float
    headroom: float


class HeadroomReport(Frozen):
    """Every tensor that the FP16 graph holds in FP16, least headroom first."""

    images: int
    dataset: str
    sample: SampleWord = "image"
    tensors: Annotated[tuple[TensorHeadroom, ...], Field(strict=False)]

    @property
    def is_short(self) -> bool:
        return any(row.headroom < MIN_HEADROOM for row in self.tensors[:1])

    @property
    def sentence(self) -> str:
        """The least headroom in words; empty where there is no tensor."""
        return "".join(
            f"FP16 headroom is at least {times_text(row.headroom)}, at {row.tensor} on {self.images:,} "
            f"{self.sample}s of {self.dataset}; {MIN_HEADROOM:g}x is needed"
            for row in self.tensors[:1]
        )

    def check(self) -> None:
        """Raises PrecisionError naming the tensors with less than 2x headroom, and the option that keeps them in FP32."""
        short = [row for row in self.tensors if row.headroom < MIN_HEADROOM]
        if not short:
            return
        shown = "\n".join(
            f"  {row.tensor}: reaches {row.max_abs:.4g}, headroom {row.headroom:.2f}x"
            + (" (overflows)" if row.headroom < 1 else "")
            for row in short[:5]
        )
        more = f"\n  ... and {len(short) - 5} more" if len(short) > 5 else ""
        pattern = modules_pattern(module for row in short for module in row.modules)
        raise PrecisionError(
            f"{len(short)} FP16 tensor(s) have less than {MIN_HEADROOM:g}x headroom to 65504 on "
            f"{self.dataset}:\n{shown}{more}",
            advice=f"keep them in FP32: --keep-fp32 '{pattern}'; or export with --bf16, {FP32S_RANGE}",
        )


CHOSEN: Final[dict[Chosen, str]] = {
    "images": "given with --images",
    "calib": "the calibration {}s, so not independent",
    "data": "the labelled {}s of --data",
    "pairs": "the inputs of --data",
    "card": "the card's own",
    "photographs": "because no others were given",
    "random": "because no others were given",
}
"""Why these images decide, in words; {} stands for what one of them is called. Empty in reports of earlier versions."""

Verdict = Literal["pass", "fail", "unproven"]
MEMORY: Final = "memory"  # the suite that compares a session with itself

SuiteVerdict = Literal["pass", "fail", "recorded"]


class ReceiptNote(Frozen):
    """A device's record of an artifact, see ``bundle/receipts.py``. ``path`` is the receipt's, in the bundle."""

    kind: str
    device: str
    created: str
    verdict: SuiteVerdict
    path: str

    @property
    def place(self) -> str:
        return f"{self.device} (receipt of {self.created[:10]})"


class Comparison(Frozen):
    """One artifact on one backend against the reference. ``unproven``: it could not run here, ``reason`` says why.

    ``receipts`` are what devices have recorded of it: a check adds them, no export does.
    """

    artifact: str
    backend: str
    precision: Precision
    verdict: Verdict
    reason: str = ""
    metrics: Metrics | None = None
    problems: Annotated[tuple[str, ...], Field(strict=False)] = ()
    receipts: Annotated[tuple[ReceiptNote, ...], Field(strict=False)] = ()

    @property
    def place(self) -> str:
        return f"{self.artifact} on {self.backend}"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it failed or did not run; nothing for what is in parity."""
        if self.verdict != "unproven":
            return tuple(f"{self.place}: {problem}" for problem in self.problems)
        if self.proof is not None:
            return (f"{self.artifact}: in parity on {self.proof.place}; not run here: {self.reason}",)
        return (f"{self.place}: not run here ({self.reason}), and there is no receipt from a device",)

    @property
    def proof(self) -> ReceiptNote | None:
        """The latest receipt of its parity, if that passed: what stands for a run on a device that is not here."""
        proofs = [receipt for receipt in self.receipts if receipt.kind == "parity"]
        last = max(proofs, key=lambda receipt: receipt.created, default=None)
        return last if last is not None and last.verdict == "pass" else None


class SuiteResult(Frozen):
    """One artifact on one suite of inputs, ``parity/suites.py``; ``case`` tells the sizes of a suite apart.

    ``error`` is the largest error of a logit, relative to the largest logit of this suite or of the images, whichever is
    larger; ``allowed`` is its limit, None where there is none: then the suite is ``recorded``, and ``note`` says why.
    """

    artifact: str
    backend: str
    precision: Precision
    suite: str
    case: str = ""
    images: int
    verdict: SuiteVerdict
    metrics: Metrics | None = None
    error: float | None = None
    allowed: float | None = None
    problems: Annotated[tuple[str, ...], Field(strict=False)] = ()
    note: str = ""


class RunToRun(Frozen):
    """The same batch twice through one session: ``differing`` of ``values`` have other bits, by ``max_rel_error`` of the
    largest logit at most.
    """

    artifact: str
    backend: str
    images: int
    values: int
    differing: int
    max_rel_error: float
    tolerance: float
    verdict: Literal["pass", "fail"]
    problem: str = ""


class Rebuild(Frozen):
    """An engine built a second time from the same graph with the same options.

    ``differing_bytes``: at how many places the two plans differ, counting what one has more. ``logits``: the second engine's
    against the first's on the parity images, None where engines do not run: ``reason`` then says why.
    """

    artifact: str
    compiler: str
    built_by: str
    rebuilt_by: str
    sha256: str
    rebuilt_sha256: str
    size_bytes: int
    rebuilt_size_bytes: int
    differing_bytes: int
    seconds: float
    logits: Metrics | None = None
    verdict: SuiteVerdict = "recorded"
    problems: Annotated[tuple[str, ...], Field(strict=False)] = ()
    reason: str = ""


class BatchInvariance(Frozen):
    """The same images in batches of several sizes: the largest difference of any logit, relative to the largest logit."""

    artifact: str
    batches: Annotated[tuple[int, ...], Field(strict=False)]
    max_rel_error: float
    tolerance: float
    verdict: Verdict
    problem: str = ""


class Mend(Frozen):
    """Patterns for ``--keep-fp32``, those that were given first, with which the FP16 graph was in parity. ``sqnr_db``: of its
    worst image.
    """

    keep_fp32: Annotated[tuple[str, ...], Field(strict=False)]
    sqnr_db: float

    @property
    def flags(self) -> str:
        return " ".join(f"--keep-fp32 '{pattern}'" for pattern in self.keep_fp32)


ReferenceKind = Literal["", "torch", "graph", "golden", "author"]
"""Whose logits the artifacts are compared with: our own network in torch, the bundle's first FP32 graph, outputs that the
author's code saved (``--golden``), or the author's code run here (``--reference``). Empty in reports of earlier versions.
"""

Finding = TypeVar("Finding", Comparison, SuiteResult, RunToRun, Rebuild)


class ParityReport(Frozen):
    """All comparisons of a bundle. ``verdict`` is the worst of them, ``unproven`` engines aside.

    ``reference_sqnr_db``, measured only when something fails: how far torch's float32 is from its own float64. No other float32
    run can be expected to be nearer to it than that. Reports of earlier versions have no ``suites`` and what follows.
    ``chosen`` is why the images are these, a key of ``CHOSEN``.
    ``reference_kind`` is who computed the reference. Where that is the author, ``settles`` names what is no longer assumed if
    nothing fails, ``suites_reference`` whose logits the suites are compared with, since saved outputs are of their own inputs
    only, and ``likely_cause`` says in words why FP32 itself is out of tolerance, if it is.
    ``mend``: what brings a failed FP16 graph into parity. ``worst``: an image in pictures, where outputs can be seen.
    """

    reference: str
    dataset: str
    dataset_sha256: str
    images: int
    comparisons: Annotated[tuple[Comparison, ...], Field(strict=False)]
    batch_invariance: BatchInvariance | None = None
    reference_sqnr_db: float | None = None
    suites: Annotated[tuple[SuiteResult, ...], Field(strict=False)] = ()
    run_to_run: Annotated[tuple[RunToRun, ...], Field(strict=False)] = ()
    rebuilds: Annotated[tuple[Rebuild, ...], Field(strict=False)] = ()
    chosen: Chosen = ""
    reference_kind: ReferenceKind = ""
    settles: Annotated[tuple[Settled, ...], Field(strict=False)] = ()
    likely_cause: str = ""
    suites_reference: str = ""
    mend: Mend | None = Field(default=None, exclude_if=lambda mend: mend is None)
    worst: WorstImage | None = Field(default=None, exclude_if=lambda worst: worst is None)
    sample: SampleWord = "image"

    def with_unproven(self, engine: Comparison) -> ParityReport:
        """With an artifact that was made since, and not compared, in place of what is said of the one it replaces."""

        def others(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
            return tuple(finding for finding in findings if finding.artifact != engine.artifact)

        replaced = [c.place for c in self.comparisons if c.artifact == engine.artifact]
        return self.model_copy(
            update={
                "comparisons": (*others(self.comparisons), engine),
                "suites": others(self.suites),
                "run_to_run": others(self.run_to_run),
                "rebuilds": others(self.rebuilds),
                "worst": None if self.worst is not None and self.worst.found in replaced else self.worst,
            }
        )

    @property
    def images_text(self) -> str:
        """Which images decided, and why these."""
        why = f": {CHOSEN[self.chosen].format(self.sample)}" if self.chosen else ""
        return f"{self.images:,} {self.sample if self.images == 1 else f'{self.sample}s'} ({self.dataset}{why})"

    def suites_against(self, result: SuiteResult) -> str:
        """With what a suite is compared, where that is not the reference of the images."""
        return f" against {self.suites_reference}" if self.suites_reference and result.suite != MEMORY else ""

    @property
    def failures(self) -> tuple[str, ...]:
        """Every problem, with the artifact and backend it belongs to."""
        found = [reason for c in self.comparisons if c.verdict == "fail" for reason in c.reasons]
        if self.batch_invariance is not None and self.batch_invariance.verdict == "fail":
            found.append(f"{self.batch_invariance.artifact}: {self.batch_invariance.problem}")
        found += [
            f"{s.artifact} on {s.backend}, {suite_name(s)}{self.suites_against(s)}: {problem}"
            for s in self.suites
            for problem in s.problems
        ]
        found += [f"{r.artifact} on {r.backend}: {r.problem}" for r in self.run_to_run if r.verdict == "fail"]
        found += [f"{r.artifact}, built again: {problem}" for r in self.rebuilds for problem in r.problems]
        found += [
            f"{c.artifact}: {receipt.kind} failed on {receipt.device}, according to the receipt {receipt.path}"
            for c in self.comparisons
            for receipt in c.receipts
            if receipt.verdict == "fail"
        ]
        return tuple(found)

    @property
    def verdict(self) -> Verdict:
        return "fail" if self.failures else "pass"

    def check(self, steps: Sequence[str] = ()) -> None:
        """Raises ParityError that lists what is out of tolerance; ``steps`` are what to do about it."""
        if self.failures:
            raise ParityError(
                f"no parity with {self.reference} on {self.images_text}:\n"
                + "\n".join(f"  {line}" for line in self.failures)
                + self._limits()
                + self._own_noise(),
                advice="\n     ".join(steps) or "the tolerances, and their reasons, are in the card",
            )

    def _limits(self) -> str:
        failed = sorted({c.precision for c in self.comparisons if c.metrics is not None and c.verdict == "fail"})
        named = " and ".join(f"[tolerance.{precision}]" for precision in failed)
        return f"\n  the limits are {named} in the card" if failed else ""

    def _own_noise(self) -> str:
        if self.reference_sqnr_db is None or self.reference_sqnr_db >= QUIET_DB:
            return ""
        return (
            f"\n  torch's own float32 is {self.reference_sqnr_db:.0f} dB from its float64 on these images; the "
            "trained sknet-fashion has 135 dB. So the network amplifies rounding: is it trained, and preprocessed right?"
            + self._rounding_or_fault(self.reference_sqnr_db)
        )

    def _rounding_or_fault(self, own_db: float) -> str:
        """Whether a failed FP32 graph is further from torch than rounding takes it; empty if none failed."""
        failed = [
            (c.metrics.sqnr_db, c.artifact)
            for c in self.comparisons
            if c.precision is Precision.FP32 and c.verdict == "fail" and c.metrics and c.metrics.sqnr_db is not None
        ]
        if not failed:
            return ""
        least, artifact = min(failed)
        shown = f"\n  {artifact} is {least:.0f} dB from torch's float32: "
        if least >= own_db - ROUNDING_DB:
            return f"{shown}what rounding alone explains, so no fault of the graph shows"
        return f"{shown}more than {ROUNDING_DB:g} dB below that, so it is a fault, not rounding"

    def of(self, artifact: str) -> Comparison | None:
        """The comparison of one artifact."""
        return next((c for c in self.comparisons if c.artifact == artifact), None)


def times_text(headroom: float) -> str:
    """A ratio in words: two decimals where it is near its limit of 2, none where it is far from it."""
    return f"{headroom:,.2f}x" if headroom < 100 else f"{headroom:,.0f}x"


def suite_name(result: SuiteResult) -> str:
    """The name of a suite in messages: ``noise``, ``sizes 56x56``."""
    return f"{result.suite} {result.case}".rstrip()

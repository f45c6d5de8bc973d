"""What was measured: the contents of ``headroom.json`` and ``parity.json``."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from skdeploy.errors import ParityError, PrecisionError
from skdeploy.graph.naming import modules_pattern
from skdeploy.parity.metrics import Metrics
from skdeploy.spec import Frozen, Precision

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
    tensors: Annotated[tuple[TensorHeadroom, ...], Field(strict=False)]

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
            f"{len(short)} FP16 tensor(s) have less than {MIN_HEADROOM:g}x headroom to 65504 on {self.dataset}:\n{shown}{more}",
            advice=f"keep them in FP32: --keep-fp32 '{pattern}'",
        )


Verdict = Literal["pass", "fail", "unproven"]


class Comparison(Frozen):
    """One artifact on one backend against the reference. ``unproven``: it could not run here, ``reason`` says why."""

    artifact: str
    backend: str
    precision: Annotated[Precision, Field(strict=False)]
    verdict: Verdict
    reason: str = ""
    metrics: Metrics | None = None
    problems: Annotated[tuple[str, ...], Field(strict=False)] = ()


class BatchInvariance(Frozen):
    """The same images in batches of several sizes: the largest difference of any logit, relative to the largest logit."""

    artifact: str
    batches: Annotated[tuple[int, ...], Field(strict=False)]
    max_rel_error: float
    tolerance: float
    verdict: Verdict
    problem: str = ""


class ParityReport(Frozen):
    """All comparisons of a bundle. ``verdict`` is the worst of them, ``unproven`` engines aside.

    ``reference_sqnr_db``, measured only when something fails: how far torch's float32 is from its own float64. No other float32
    run can be expected to be nearer to it than that.
    """

    reference: str
    dataset: str
    dataset_sha256: str
    images: int
    comparisons: Annotated[tuple[Comparison, ...], Field(strict=False)]
    batch_invariance: BatchInvariance | None = None
    reference_sqnr_db: float | None = None

    @property
    def failures(self) -> tuple[str, ...]:
        """Every problem, with the artifact and backend it belongs to."""
        found = [
            f"{c.artifact} on {c.backend}: {problem}"
            for c in self.comparisons
            if c.verdict == "fail"
            for problem in c.problems
        ]
        if self.batch_invariance is not None and self.batch_invariance.verdict == "fail":
            found.append(f"{self.batch_invariance.artifact}: {self.batch_invariance.problem}")
        return tuple(found)

    @property
    def verdict(self) -> Verdict:
        return "fail" if self.failures else "pass"

    def check(self) -> None:
        """Raises ParityError that lists what is out of tolerance."""
        if self.failures:
            raise ParityError(
                f"no parity with {self.reference} on {self.dataset}:\n"
                + "\n".join(f"  {line}" for line in self.failures),
                advice=self._advice(),
            )

    def _advice(self) -> str:
        if self.reference_sqnr_db is None:
            return "the tolerances, and their reasons, are in the card"
        return (
            f"torch's float32 is itself {self.reference_sqnr_db:.0f} dB from its float64 on these images; the trained "
            "sknet-fashion is 135 dB. Far less means that the network amplifies rounding: is it trained? Preprocessed right?"
        )

    def of(self, artifact: str) -> Comparison | None:
        """The comparison of one artifact."""
        return next((c for c in self.comparisons if c.artifact == artifact), None)

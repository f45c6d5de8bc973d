"""Results of a bench, as printed, written to receipts and read by the report."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from skdeploy.bench.statistics import Percentiles, Ratio
from skdeploy.core.spec import Frozen, Precision, SampleWord
from skdeploy.devices.machine_state import MachineState


class BatchLatency(Frozen):
    """One batch size. ``device_ms`` is the device's time alone, if the backend measures it."""

    batch: int
    runs: int
    host_ms: Percentiles
    device_ms: Percentiles | None
    images_per_second: float
    warm_up_runs: int
    warm_up_seconds: float
    warm_up_stable: bool


class LatencyReport(Frozen):
    """One artifact on one backend.

    ``session`` says in words how it was run; ``threads`` is None where the CPU does not compute. ``sizes`` are those of free
    dimensions, and ``sample`` is what a batch holds.
    """

    precision: Precision
    session: str
    threads: int | None
    cuda_graph: bool
    seed: int
    seconds: float
    batches: Annotated[tuple[BatchLatency, ...], Field(strict=False)]
    machine: MachineState
    sample: SampleWord = "image"
    sizes: dict[str, int] = Field(default={})

    @property
    def doubts(self) -> tuple[str, ...]:
        """Reasons to doubt the figures: no stable state, or a busy machine."""
        unstable = [
            f"batch {row.batch} was not stable after {row.warm_up_seconds:.0f} s of warm-up"
            for row in self.batches
            if not row.warm_up_stable
        ]
        return (*unstable, *self.machine.warnings)


class Comparison(Frozen):
    """An artifact against another, on one backend with one batch, block by block in turn.

    ``same_network``: both are of one network and one input size. ``int8`` says whether INT8 pays, if that was compared.
    """

    artifact: str
    against: str
    backend: str
    batch: int
    ratio: Ratio
    same_network: bool
    int8: str | None

    @property
    def sentence(self) -> str:
        """Which is faster, with the interval and the number of pairs that show it."""
        ratio, where = self.ratio, f"on {self.backend}, batch {self.batch}"
        if ratio.verdict == "no difference":
            said = f"no difference is shown between {self.artifact} and {self.against} {where}"
        else:
            said = f"{self.artifact} is {ratio.verdict} than {self.against} {where}"
        kind = "" if self.same_network else "; they are different networks"
        return (
            f"{said}: {ratio.ratio:.3f} times its latency, 95 % interval {ratio.low:.3f} to {ratio.high:.3f}, "
            f"{ratio.pairs} pairs of blocks{kind}"
        )


class LatencyReceipt(LatencyReport):
    """The content of a receipt of kind latency, with what the artifact was compared with in the same run."""

    comparisons: Annotated[tuple[Comparison, ...], Field(strict=False)] = ()


class Measured(Frozen):
    """A latency with the bundle, artifact and backend that it belongs to."""

    bundle: str
    artifact: str
    backend: str
    device: str
    latency: LatencyReport
    receipt: str | None = None


class BenchReport(Frozen):
    """``notes`` say what was not measured, and why."""

    measured: tuple[Measured, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]

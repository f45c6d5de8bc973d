"""What a bench found, as it is printed, written to receipts and read by the report."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from skdeploy.bench.statistics import Percentiles, Ratio
from skdeploy.core.spec import Frozen, Precision
from skdeploy.devices.machine_state import MachineState


class BatchLatency(Frozen):
    """One batch size. ``device_ms`` is of the device alone, where the backend tells it."""

    batch: int
    runs: int
    host_ms: Percentiles
    device_ms: Percentiles | None
    images_per_second: float
    warm_up_runs: int
    warm_up_seconds: float
    warm_up_stable: bool


class LatencyReport(Frozen):
    """One artifact on one backend: the content of a receipt of kind latency.

    ``session`` says in words how it was run; ``threads`` is None where the CPU does not compute.
    """

    precision: Precision
    session: str
    threads: int | None
    cuda_graph: bool
    seed: int
    seconds: float
    batches: Annotated[tuple[BatchLatency, ...], Field(strict=False)]
    machine: MachineState


class Measured(Frozen):
    """A latency with the bundle, artifact and backend that it is of."""

    bundle: str
    artifact: str
    backend: str
    device: str
    latency: LatencyReport
    receipt: str | None = None


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


class BenchReport(Frozen):
    """``notes`` say what was not measured, and why."""

    measured: tuple[Measured, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]

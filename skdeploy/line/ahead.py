"""The proof of an export, begun while the line goes on: on a thread of its own, each graph is compared as soon as it is there.
The reference of a large network is computed before that, in a process beside the trace.

A calibration has the machine for itself: it uses all cores, and beside a proof it would need 0.3 GB more for SKNet-50.

Only that thread proves until the line comes to its parity station, and it only reads the bundle: the stations run one after
another as ever, each failure ends the line where it would have, and the findings are those of a proof that begins at the end.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from skdeploy.bundle.artifact import Artifact
from skdeploy.checkpoints.load import Network, OwnNetwork
from skdeploy.core import cpu
from skdeploy.core.progress import Progress
from skdeploy.images.dataset import Dataset

if TYPE_CHECKING:
    from skdeploy.backends.torch_process import TorchProcess
    from skdeploy.line.line import Line
    from skdeploy.parity.report import ParityReport
    from skdeploy.parity.witness import Witness

TOLD_EVERY_S: Final = 0.2
LARGE_BYTES: Final = 16_000_000  # of weights: a smaller network runs in the time that a process takes to load torch


class Ahead(AbstractContextManager["Ahead"]):
    """Follows a line. Nothing begins before a station has made a graph anew: a line that is up to date proves nothing.

    ``last`` is the station that makes the last graph. Where one core is all there is, ``at_once`` is false and the proof waits
    for its station.
    """

    def __init__(
        self,
        line: Line,
        dataset: Dataset,
        network: Network | OwnNetwork | None,
        witness: Witness | None,
        last: str,
        *,
        at_once: bool | None = None,
    ) -> None:
        from skdeploy.parity.compare import EXPORT_BATCHES
        from skdeploy.parity.prove import Proof

        self._at_once = cpu.cores() > 1 if at_once is None else at_once
        self._waiting, self._jobs, self._stopped = list[Artifact](), list[Future[object]](), threading.Event()
        self._told, self._last = _Told(), last
        self._elsewhere = _process_for(network, witness) if self._at_once else None
        self._proof = Proof(
            line.bundle,
            lambda: line.artifacts,
            dataset,
            lambda: network.module if network else None,
            self._told,
            batches=EXPORT_BATCHES,
            witness=witness,
            stopped=self._stopped,
            elsewhere=self._elsewhere.open if self._elsewhere is not None else None,
        )
        self._pool = ThreadPoolExecutor(1, "proof", initializer=_leave_a_core)
        self._torch_threads = _torch_threads()
        self._begun, self._held, self._open = False, False, ExitStack()
        self._network = network
        if self._elsewhere is not None:
            self._open.callback(self._elsewhere.close)
        for artifact in line.artifacts:
            self.follow(artifact, reused=artifact.path in line.reused)
        line.follower, line.alone = self.follow, self.alone

    def follow(self, artifact: Artifact, *, reused: bool) -> None:
        """An artifact of the line is there."""
        if not (reused or self._begun):
            self._begun = True
            if self._at_once:
                self._open.enter_context(cpu.shared())
                _leave_a_core()
        if self._begun and self._at_once and not self._jobs and (self._elsewhere or artifact.format == "onnx"):
            self._jobs.append(self._pool.submit(self._compute_reference))
        if artifact.format == "onnx":
            self._waiting.append(artifact)
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and self._begun and self._at_once and not self._held:
            graph = self._waiting.pop(0)
            self._jobs.append(self._pool.submit(self._proof.examine, graph, last=graph.station == self._last))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While a station needs all cores and much memory: what is under way comes to its end first, and what comes waits.

        A failure is raised where the line comes to its parity station, as ever.
        """
        if not (self._begun and self._at_once):
            yield
            return
        wait(self._jobs)
        if self._elsewhere is not None and isinstance(self._network, Network):
            self._network.forget()  # the reference was computed in the other process
        self._held = True
        try:
            with cpu.undivided():
                yield
        finally:
            self._held = False
        self._go_on()

    def _compute_reference(self) -> None:
        self._proof.compute_reference()
        if self._elsewhere is not None:
            self._elsewhere.close()

    def report(self, artifacts: tuple[Artifact, ...], progress: Progress) -> ParityReport:
        """The whole proof, once what was begun is done. Raises as ``prove``, and what an earlier comparison has raised."""
        for job in self._jobs:
            while not wait([job], TOLD_EVERY_S).done:
                progress.update(self._told.detail)
            job.result()
        self._proof.progress = progress
        return self._proof.report(artifacts)

    def __exit__(self, *_: object) -> None:
        """Ends what is under way, at most one batch later."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)
        self._open.close()
        _set_torch_threads(self._torch_threads)


class _Told(Progress):
    """Keeps what the proof does now, for whoever waits for it."""

    detail = ""

    def update(self, detail: str) -> None:
        self.detail = detail


def _process_for(network: Network | OwnNetwork | None, witness: Witness | None) -> TorchProcess | None:
    """For a network that is large enough, and that another process can build: one of a card, which is its own reference."""
    from skdeploy.parity.reference import Author

    if not isinstance(network, Network) or isinstance(witness, Author):
        return None
    if network.weights.stat().st_size < LARGE_BYTES:
        return None
    from skdeploy.backends.torch_process import TorchProcess, can_run

    return TorchProcess(network, _beside_the_line()) if can_run(network.spec) else None


def _beside_the_line() -> int:
    """Threads for torch that leave the line a core."""
    return max(1, cpu.cores() - 1)


def _leave_a_core() -> None:
    """Torch's threads wait by spinning, which takes the time of the line beside them."""
    _set_torch_threads(_beside_the_line())


def _torch_threads() -> int:
    """Of torch, if it is loaded: without it nothing is asked, and 0 is none."""
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else 0


def _set_torch_threads(count: int) -> None:
    torch = sys.modules.get("torch")
    if torch is not None and count:
        torch.set_num_threads(count)

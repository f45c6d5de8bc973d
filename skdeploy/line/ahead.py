"""The proof of an export, begun while the line goes on: on a thread of its own, each graph is compared as soon as it is there.

Only that thread proves until the line comes to its parity station, and it only reads the bundle: the stations run one after
another as ever, each failure ends the line where it would have, and the findings are those of a proof that begins at the end.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from skdeploy.bundle.artifact import Artifact
from skdeploy.core import cpu
from skdeploy.core.progress import Progress
from skdeploy.images.dataset import Dataset

if TYPE_CHECKING:
    from skdeploy.checkpoints.load import Network, OwnNetwork
    from skdeploy.line.line import Line
    from skdeploy.parity.report import ParityReport
    from skdeploy.parity.witness import Witness

TOLD_EVERY_S: Final = 0.2


class Ahead(AbstractContextManager["Ahead"]):
    """Follows a line. Nothing begins before a station has made a graph anew: a line that is up to date proves nothing.

    Where one core is all there is, ``at_once`` is false and the proof waits for its station.
    """

    def __init__(
        self,
        line: Line,
        dataset: Dataset,
        network: Network | OwnNetwork | None,
        witness: Witness | None,
        *,
        at_once: bool | None = None,
    ) -> None:
        from skdeploy.parity.compare import EXPORT_BATCHES
        from skdeploy.parity.prove import Proof

        self._at_once = cpu.cores() > 1 if at_once is None else at_once
        self._waiting, self._jobs, self._stopped = list[Artifact](), list[Future[object]](), threading.Event()
        self._told = _Told()
        self._proof = Proof(
            line.bundle,
            line.artifacts,
            dataset,
            lambda: network.module if network else None,
            self._told,
            batches=EXPORT_BATCHES,
            witness=witness,
            stopped=self._stopped,
        )
        self._pool = ThreadPoolExecutor(1, "proof", initializer=_leave_a_core)
        self._torch_threads = _torch_threads()
        self._begun = False
        for artifact in line.artifacts:
            self.follow(artifact, reused=artifact.path in line.reused)
        line.follower = self.follow

    def follow(self, artifact: Artifact, *, reused: bool) -> None:
        """An artifact of the line is there: the graph before it was not the last."""
        if not (self._begun or reused):
            self._begun = True
            if self._at_once:
                self._jobs.append(self._pool.submit(self._proof.compute_reference))
        if artifact.format == "onnx":
            self._examine_waiting(last=False)
            self._waiting.append(artifact)

    def last(self) -> None:
        """No other graph will come."""
        self._examine_waiting(last=True)

    def _examine_waiting(self, *, last: bool) -> None:
        if self._begun and self._at_once:
            while self._waiting:
                graph = self._waiting.pop(0)
                is_last = last and not self._waiting
                self._jobs.append(self._pool.submit(self._proof.examine, graph, last=is_last))

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
        _set_torch_threads(self._torch_threads)


class _Told(Progress):
    """Keeps what the proof does now, for whoever waits for it."""

    detail = ""

    def update(self, detail: str) -> None:
        self.detail = detail


def _leave_a_core() -> None:
    """Torch's threads wait by spinning, which takes the time of the line beside them."""
    _set_torch_threads(max(1, cpu.cores() - 1))


def _torch_threads() -> int:
    """Of torch, if it is loaded: without it nothing is asked, and 0 is none."""
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else 0


def _set_torch_threads(count: int) -> None:
    torch = sys.modules.get("torch")
    if torch is not None and count:
        torch.set_num_threads(count)

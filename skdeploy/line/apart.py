"""Weights and trace of a large network, made in a process of their own: torch and what a trace leaves end with it.

For SKNet-50 that is 0.6 GB, which would lie beside a calibration and a proof. The stations are the same ones, with the same
options; the process makes the file and answers with the station's facts or with its error.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from skdeploy.bundle.station_facts import StationFacts
from skdeploy.checkpoints.weights_record import WeightsRecord
from skdeploy.core import cpu, errors
from skdeploy.core.errors import ExportError, SkdeployError
from skdeploy.core.other_process import OtherProcess, end_of_pipe

if TYPE_CHECKING:
    from skdeploy.core.spec import ModelSpec
    from skdeploy.line.sources import CardSource, GraphSource, ModuleSource

LARGE_BYTES: Final = 16_000_000  # of weights: a smaller network is made in the time that a process takes to load torch
FLOAT_BYTES: Final = 4

FactsT = TypeVar("FactsT", bound=StationFacts)


class Apart(AbstractContextManager["Apart"]):
    """The process, from the first file that it makes to ``close``."""

    def __init__(self) -> None:
        self._process: OtherProcess | None = None

    def make(self, kind: type[FactsT], station: str, spec: ModelSpec, out: Path, **given: object) -> FactsT:
        """Makes the file ``out`` there, and nothing else if that fails. Raises what the station raises there, and ExportError
        if the process ends. ``given``: what the station takes besides the spec, as JSON.
        """
        try:
            if self._process is None:
                self._process = OtherProcess(__name__, f"makes {station} with torch", ExportError)
            said = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)  # what a card leaves open stays open
            self._process.send(json.dumps({"station": station, "spec": said, "out": str(out), **given}).encode())
            answer = json.loads(self._process.answer())
        except BaseException:
            self.close()  # at once: the caller removes the file, and nobody may write it then
            raise
        if "facts" not in answer:
            self.close()
            raise _error(answer)
        return kind.model_validate(answer["facts"])

    def close(self) -> None:
        """Ends the process, with what it had to say on our stderr. The next file starts another one."""
        if self._process is not None:
            sys.stderr.write(self._process.said())
            self._process.close()
            self._process = None

    def __exit__(self, *_: object) -> None:
        self.close()


def apart_for(source: CardSource | GraphSource | ModuleSource) -> Apart | None:
    """For a card's network that is large, and that another process can build. None where this process has loaded torch or
    will, for a proof on its only core: then torch would be loaded twice.
    """
    from skdeploy.line.sources import CardSource

    if not isinstance(source, CardSource) or source.imported is not None:
        return None
    if "torch" in sys.modules or cpu.cores() == 1:
        return None
    if source.checkpoint is not None:
        size = source.checkpoint.stat().st_size
    else:  # random weights: as many as were published
        size = FLOAT_BYTES * (source.spec.reference.parameters or 0)
    from skdeploy.backends.torch_process import can_run

    return Apart() if size >= LARGE_BYTES and can_run(source.spec) else None


def _error(answer: dict[str, Any]) -> Exception:
    """The error that the station raised there, with where."""
    kind, text = answer["error"], answer["trace"]
    found: Exception = RuntimeError(f"{kind} in another process")
    if "of_system" in answer:
        found = OSError(*answer["of_system"])
    elif "message" in answer:
        found = getattr(errors, kind)(answer["message"], advice=answer["advice"])
    found.add_note(text)  # a traceback ends with it
    return found


def _told(error: Exception) -> dict[str, object]:
    said: dict[str, object] = {"error": type(error).__name__, "trace": traceback.format_exc()}
    if isinstance(error, SkdeployError) and type(error).__module__ == errors.__name__:
        said |= {"message": error.message, "advice": error.advice}
    elif isinstance(error, OSError):
        said["of_system"] = [error.errno, error.strerror, error.filename]
    return said


def main() -> None:
    """The process: makes files until the pipe is closed."""
    from skdeploy.core.memory import keep_freed

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both, and the parent ends this one
    keep_freed()
    pipe = end_of_pipe()
    while True:
        try:
            asked = json.loads(pipe.recv_bytes())
        except EOFError:  # the parent has ended
            return
        try:
            answer: dict[str, object] = {"facts": _whole(_made(asked))}
        except Exception as error:  # noqa: BLE001 (whatever it is, the parent raises it)
            answer = _told(error)
        pipe.send_bytes(json.dumps(answer).encode())


def _whole(facts: StationFacts) -> dict[str, object]:
    """Facts as JSON, with the tensors that a dump leaves out: the manifest has them elsewhere."""
    tensors = {"inputs": facts.inputs, "outputs": facts.outputs}
    listed = {name: [each.model_dump(mode="json") for each in value] for name, value in tensors.items()}
    return {**facts.model_dump(mode="json", by_alias=True), **listed}


def _made(asked: dict[str, Any]) -> StationFacts:
    from skdeploy.core.memory import loading

    with loading("torch"):
        import torch

    from skdeploy.checkpoints.load import Network
    from skdeploy.core.options import NoOptions
    from skdeploy.core.progress import Silent
    from skdeploy.core.spec import ModelSpec
    from skdeploy.line.station import Inputs
    from skdeploy.line.stations.trace import Trace
    from skdeploy.line.stations.weights import Weights
    from skdeploy.passes.trace_options import TraceOptions

    torch.set_num_threads(max(1, cpu.cores() - 1))  # the reference is computed beside this
    spec, out = ModelSpec.model_validate_json(json.dumps(asked["spec"])), Path(asked["out"])
    if asked["station"] == Weights.name:
        checkpoint = Path(asked["checkpoint"]) if asked["checkpoint"] is not None else None
        record = WeightsRecord.model_validate(asked["record"])
        return Weights(record, checkpoint).make(Inputs(spec, {}, {}, Silent()), NoOptions(), out)
    options = TraceOptions.model_validate(asked["options"])
    return Trace(Network(spec, Path(asked["weights"]))).save(options, out, last_use=True)


if __name__ == "__main__":
    main()

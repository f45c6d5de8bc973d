"""A card's network, run by PyTorch in a process of its own: beside a trace, which holds Python's lock and torch's global state.

The process gets one line of JSON, then arrays as .npy, and answers each with an array.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from skdeploy.backends.base import Array, Session
from skdeploy.checkpoints.load import Network
from skdeploy.core.errors import ParityError
from skdeploy.core.other_process import OtherProcess, end_of_pipe
from skdeploy.core.spec import ModelSpec, TensorSpec
from skdeploy.zoo import FAMILIES


def can_run(spec: ModelSpec) -> bool:
    """Whether another process knows the family: one that was registered from outside is known in this process alone."""
    family = FAMILIES.get(spec.network.family)
    return family is not None and family.network.startswith("skdeploy.") and bool(sys.executable)


class TorchProcess:
    """The process, with ``threads`` threads: from the first session that is opened to ``close``."""

    def __init__(self, network: Network, threads: int) -> None:
        self._network, self._threads = network, threads
        self._process: OtherProcess | None = None

    def open(self, spec: ModelSpec) -> Session:
        """The network as a session for the input size of a spec. Closing it leaves the process there."""
        if self._process is None:
            self._process = self._start()
        return _Remote(self._process, spec)

    def _start(self) -> OtherProcess:
        process = OtherProcess(__name__, "computes the reference", ParityError)
        spec, weights = self._network.spec.model_dump_json(by_alias=True), str(self._network.weights)
        process.send(json.dumps({"spec": spec, "weights": weights, "threads": self._threads}).encode())
        return process

    def close(self) -> None:
        """Ends the process, whatever it does."""
        if self._process is not None:
            self._process.close()
            self._process = None


class _Remote(Session):
    """``input``, float32 (batch, C, H, W) -> ``logits`` (batch, classes)."""

    def __init__(self, process: OtherProcess, spec: ModelSpec) -> None:
        self.inputs = (TensorSpec(name="input", dtype="float32", shape=("batch", *spec.input.shape)),)
        self.outputs = (TensorSpec(name="logits", dtype="float32", shape=("batch", spec.network.classes)),)
        self._process = process

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self._process.send(_npy(feeds["input"]))
        return {"logits": _array(self._process.answer())}


def _npy(array: Array) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def _array(data: bytes) -> Array:
    found: Array = np.load(io.BytesIO(data), allow_pickle=False)
    return found


def main() -> None:
    """The process: from the head to the end of the pipe, which its file descriptor names."""
    from skdeploy.core.memory import keep_freed, loading

    with loading("torch"):
        import torch
    from skdeploy.backends.torch import open_session

    keep_freed()
    pipe = end_of_pipe()
    head = json.loads(pipe.recv_bytes())
    torch.set_num_threads(head["threads"])
    network = Network(ModelSpec.model_validate_json(head["spec"]), Path(head["weights"]))
    with open_session(network.module, network.spec) as session:
        while True:
            try:
                images = _array(pipe.recv_bytes())
            except EOFError:  # the parent has ended, or needs no more
                return
            pipe.send_bytes(_npy(session.run({"input": images})["logits"]))


if __name__ == "__main__":
    main()

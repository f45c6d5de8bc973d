"""A card's network, run by PyTorch in a process of its own: beside a trace, which holds Python's lock and torch's global state.

The process gets one line of JSON, then arrays as .npy, and answers each with an array. Nothing that is sent can hold code.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import numpy as np

from skdeploy.backends.base import Array, Session
from skdeploy.checkpoints.load import Network
from skdeploy.core.errors import ParityError
from skdeploy.core.spec import ModelSpec, TensorSpec
from skdeploy.zoo import FAMILIES

SHOWN_LINES: Final = 5  # of what the process said when it failed


def can_run(spec: ModelSpec) -> bool:
    """Whether another process knows the family: one that was registered from outside is known in this process alone."""
    family = FAMILIES.get(spec.network.family)
    return family is not None and family.network.startswith("skdeploy.") and bool(sys.executable)


class TorchProcess:
    """The process, with ``threads`` threads: from the first session that is opened to ``close``."""

    def __init__(self, network: Network, threads: int) -> None:
        self._network, self._threads = network, threads
        self._process: subprocess.Popen[bytes] | None = None

    def open(self, spec: ModelSpec) -> Session:
        """The network as a session for the input size of a spec. Closing it leaves the process there."""
        if self._process is None:
            self._start()
        return _Remote(self, spec)

    def _start(self) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._pipe, its_end = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(its_end.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            pass_fds=(its_end.fileno(),),
        )
        its_end.close()
        spec, weights = self._network.spec.model_dump_json(by_alias=True), str(self._network.weights)
        self._send(json.dumps({"spec": spec, "weights": weights, "threads": self._threads}).encode())

    def run(self, images: Array) -> Array:
        """Logits (N, classes) of normalised images, float32 (N, C, H, W). Raises ParityError if the process fails."""
        self._send(_npy(images))
        try:
            return _array(self._pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._failed() from error

    def close(self) -> None:
        """Ends the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._pipe.close()
            self._said.close()
            self._process = None

    def _send(self, data: bytes) -> None:
        try:
            self._pipe.send_bytes(data)
        except OSError as error:
            raise self._failed() from error

    def _failed(self) -> ParityError:
        assert self._process is not None  # it was sent something
        code = self._process.wait()
        self._said.seek(0)
        words = self._said.read().decode(errors="replace").strip().splitlines()[-SHOWN_LINES:]
        return ParityError(
            f"the process that computes the reference ended with {code}: {' | '.join(words) or 'it said nothing'}",
            advice="-9 means that it was killed, most often because memory ran out; report anything else",
        )


class _Remote(Session):
    """``input``, float32 (batch, C, H, W) -> ``logits`` (batch, classes)."""

    def __init__(self, process: TorchProcess, spec: ModelSpec) -> None:
        self.inputs = (TensorSpec(name="input", dtype="float32", shape=("batch", *spec.input.shape)),)
        self.outputs = (TensorSpec(name="logits", dtype="float32", shape=("batch", spec.network.classes)),)
        self._process = process

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"logits": self._process.run(feeds["input"])}


def _npy(array: Array) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def _array(data: bytes) -> Array:
    found: Array = np.load(io.BytesIO(data), allow_pickle=False)
    return found


def main() -> None:
    """The process: from the head to the end of the pipe, which its file descriptor names."""
    import torch

    from skdeploy.backends.torch import open_session
    from skdeploy.core.memory import keep_freed

    keep_freed()
    pipe = Connection(int(sys.argv[1]))
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

"""A network of skdeploy on ONNX Runtime, as a model of Triton's Python backend.

`skdeploy triton --backend python` copies this file. It runs without skdeploy: the server's own Python needs numpy and
onnxruntime. The digests in config.pbtxt are checked when the model is loaded, before ONNX Runtime reads the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

STUB = Path("/proc/self/exe")  # the program that runs this file for Triton
GRAPH = "model.onnx"
# As skdeploy proves parity: Q/DQ are computed as the graph says. ONNX Runtime's own handling of them rounds FP16 biases away.
SESSION = {"session.disable_quant_qdq": "1", "session.intra_op.allow_spinning": "0"}


class TritonPythonModel:
    """One instance. Requests that wait together run as one batch."""

    def initialize(self, args: dict[str, str]) -> None:
        self._backend: Any = import_module("triton_python_backend_utils")
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        problem = misread(np.__version__) or damage(folder, config, args["model_version"])
        if problem:
            raise self._backend.TritonModelException(problem)
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at the import; else figures go to Microsoft
        try:
            ort: Any = import_module("onnxruntime")
        except ImportError as error:
            raise self._backend.TritonModelException(
                f"onnxruntime cannot be imported by the server's Python, {sys.prefix}: {error}. Install it there: "
                "pip install onnxruntime"
            ) from error
        options = ort.SessionOptions()
        for key, value in SESSION.items():
            options.add_session_config_entry(key, value)
        self._session = ort.InferenceSession(str(folder / GRAPH), options, providers=["CPUExecutionProvider"])
        self._batched = config["max_batch_size"] > 0
        ranks = {each.name: len(each.shape) for each in self._session.get_inputs()}
        self._inputs = [(each["name"], ranks[each["name"]]) for each in config["input"]]
        self._outputs = [each["name"] for each in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """One answer a request. Requests of other sizes than the first run by themselves."""
        fed = [self._feeds(request) for request in requests]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, feeds in enumerate(fed):
            own = () if self._batched else (index,)
            groups.setdefault((*own, *(array.shape[1:] for array in feeds.values())), []).append(index)
        answers: list[Any] = [None] * len(requests)
        for places in groups.values():
            for place, answer in zip(places, self._answers([fed[place] for place in places]), strict=True):
                answers[place] = answer
        return answers

    def _feeds(self, request: Any) -> dict[str, Any]:
        feeds = {}
        for name, rank in self._inputs:
            array = self._backend.get_input_tensor_by_name(request, name).as_numpy()
            feeds[name] = array.reshape(len(array)) if rank == 1 and array.ndim == 2 else array  # one number a sample
        return feeds

    def _answers(self, fed: list[dict[str, Any]]) -> list[Any]:
        feeds = {
            name: np.concatenate([each[name] for each in fed]) if len(fed) > 1 else fed[0][name] for name in fed[0]
        }
        try:
            outputs = self._session.run(self._outputs, feeds)
        except Exception as error:  # ONNX Runtime's exceptions have no common base; the clients are told
            failed = self._backend.TritonError(f"ONNX Runtime: {str(error).splitlines()[0]}")
            return [self._backend.InferenceResponse(error=failed) for _ in fed]
        ends = np.cumsum([len(next(iter(each.values()))) for each in fed])[:-1]
        parts = [np.split(output, ends) for output in outputs] if len(fed) > 1 else [[output] for output in outputs]
        return [
            self._backend.InferenceResponse([
                self._backend.Tensor(name, np.ascontiguousarray(part[index]))
                for name, part in zip(self._outputs, parts, strict=True)
            ])
            for index in range(len(fed))
        ]  # fmt: skip


def misread(numpy: str, stub: Path = STUB) -> str:
    """Why arrays would be read wrong, without an error: a stub whose pybind11 is older than 2.12 takes numpy 2 for numpy 1.

    Later ones ask `numpy.lib.NumpyVersion` first; Triton 2.51 does not. Each model has this: Triton takes a file alone.
    """
    if int(numpy.partition(".")[0]) < 2 or b"NumpyVersion" in stub.read_bytes():
        return ""
    return (
        f"this Triton's Python backend reads arrays of numpy {numpy} wrong: install numpy 1 for the server's Python, "
        f'{sys.prefix}: pip install "numpy<2"'
    )


def damage(folder: Path, config: dict[str, Any], version: str) -> str:
    """Why the files of a version are not those that config.pbtxt has digests of; empty if they are."""
    prefix = f"sha256.{version}."
    recorded = {
        key.removeprefix(prefix): value["string_value"]
        for key, value in config["parameters"].items()
        if key.startswith(prefix)
    }
    if GRAPH not in recorded:
        return f"config.pbtxt has no digest of {folder / GRAPH}: write the version with `skdeploy triton`"
    for name, sha256 in recorded.items():
        if not (folder / name).is_file():
            return f"{folder / name} is missing"
        with (folder / name).open("rb") as file:
            found = (
                hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)
            )
        if found != sha256:
            return f"{folder / name} is not the bundle's: its sha256 is {found}, config.pbtxt has {sha256}"
    return ""


def _digest(file: Any) -> str:
    """Python 3.10, which Triton's images had until 24.10, has no ``file_digest``."""
    made = hashlib.sha256()
    while chunk := file.read(1 << 20):
        made.update(chunk)
    return made.hexdigest()

"""TensorRT's timing cache in a file of ours: how long each kernel took on one device, so that the next build asks it less.

The file is one line of JSON, which says for which device it is and what the rest must digest to, and then TensorRT's bytes.
TensorRT checks a cache by its device as well, but tells a user no more than that it failed, and takes one that was cut.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError

from skdeploy.core.errors import EngineError, IntegrityError, UsageError
from skdeploy.core.files import read_file, written_whole
from skdeploy.core.spec import Frozen

MAX_BYTES: Final = 1 << 30  # TensorRT's have some hundred kilobytes a network
MAX_HEADER_BYTES: Final = 4096  # a header has a few hundred
_ELSEWHERE: Final = "give --timing-cache another file; it is made if it does not exist"


class TimingDevice(Frozen):
    """The device and versions of a cache: kernels of another GPU, TensorRT or CUDA take other times."""

    gpu: str
    compute_capability: str
    tensorrt: str
    cuda: str

    def differences(self, other: TimingDevice) -> str:
        """Describe the differences to another; empty if there are none."""
        labels = {"gpu": "GPU", "compute_capability": "compute capability", "tensorrt": "TensorRT", "cuda": "CUDA"}
        return ", ".join(
            f"{label} {getattr(self, name)}, not {getattr(other, name)}"
            for name, label in labels.items()
            if getattr(self, name) != getattr(other, name)
        )


class _Header(Frozen):
    kind: Literal["skdeploy timing cache"] = "skdeploy timing cache"
    schema_version: Literal[1] = Field(default=1, alias="schema")
    device: TimingDevice
    sha256: str


def read_timing_cache(path: Path, device: TimingDevice) -> bytes:
    """TensorRT's bytes, or none where there is no file yet.

    Raises EngineError for a cache of another device; IntegrityError for a file that is not a timing cache of ours, or is cut or
    altered; UsageError if it cannot be read, or if there is no folder that could be written to.
    """
    require_writable(path)
    try:
        content = read_file(path, MAX_BYTES)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UsageError(f"cannot read the timing cache {path}: {error.strerror}", advice=_ELSEWHERE) from error
    line, newline, payload = content.partition(b"\n")
    try:
        if not newline or len(line) > MAX_HEADER_BYTES:
            raise ValueError("no header")
        header = _Header.model_validate_json(line)
    except (ValidationError, ValueError) as error:
        raise IntegrityError(
            f"skdeploy did not write the timing cache {path}, so TensorRT does not get it", advice=_ELSEWHERE
        ) from error
    if differences := header.device.differences(device):
        raise EngineError(f"the timing cache {path} belongs to another device: {differences}", advice=_ELSEWHERE)
    if hashlib.sha256(payload).hexdigest() != header.sha256:
        raise IntegrityError(f"the timing cache {path} is cut off or changed", advice=f"delete it, or {_ELSEWHERE}")
    return payload


def write_timing_cache(path: Path, device: TimingDevice, payload: bytes) -> None:
    """Replaces the file, whole or not at all; of two builds at once the last one's stays.

    Raises UsageError or IntegrityError if it cannot be written.
    """
    header = _Header(device=device, sha256=hashlib.sha256(payload).hexdigest())
    try:
        with written_whole(path) as partial:
            partial.write_bytes(header.model_dump_json(by_alias=True).encode() + b"\n" + payload)
    except UsageError as error:
        raise UsageError(error.message, advice=_ELSEWHERE) from error


def require_writable(path: Path) -> None:
    """Raises UsageError, before a long build, if a file could not be put there after it."""
    folder = path.parent
    if path.is_dir():
        raise UsageError(f"the timing cache {path} is a folder", advice=_ELSEWHERE)
    if not folder.is_dir():
        raise UsageError(f"the timing cache {path}: the folder {folder} does not exist", advice="make the folder first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"the timing cache {path}: {folder} cannot be written to", advice=_ELSEWHERE)

"""The tensors of a checkpoint file, by its content, without running code from it.

A file is looked at before a library opens it: its size, and for a zip how many members there are and how far they unpack.
PyTorch files are read with ``weights_only=True``, and pages of a file come into memory only when they are used.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from skdeploy.checkpoints.caffemodel import is_caffemodel, read_caffemodel
from skdeploy.checkpoints.unwrap import is_tensor, label, unwrapped, without_counters
from skdeploy.core.errors import WeightsError
from skdeploy.core.files import open_file, require_plain_name
from skdeploy.core.listing import some
from skdeploy.core.packages import EXTRAS, require, require_export

if TYPE_CHECKING:
    from torch import Tensor

MAX_FILE_BYTES: Final = 16 << 30  # of the file, and of its values in float32: some eighty times SKNet-101's
MAX_TENSORS: Final = 100_000  # also of members of a zip; the largest SKNet has about 1,500
# Unpacked bytes to bytes of the file; trained weights shrink to a half at best, and torch stores them.
MAX_EXPANSION: Final = 4
MAX_DIRECTORY_BYTES: Final = 64 << 20  # a zip's list of members, read at once: 640 bytes for each of the most allowed
MAX_HEADER_BYTES: Final = 100 << 20  # safetensors' own limit
HEAD_BYTES: Final = 512  # enough for every detector
SHOWN: Final = 10

PREFIXES: Final = ("module.", "model.", "_orig_mod.")  # DataParallel, Lightning, torch.compile
SAVE_TENSORS: Final = "if you trust the file, load it and save model.state_dict() with safetensors"

# What training scripts save beside the weights. Read as an `Unread`, never as what it says it is.
HARMLESS: Final = (
    "argparse.Namespace",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",  # in the learning curve below
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",  # Python 3.13's name for it
    "pathlib.WindowsPath",
    "pathlib._local.WindowsPath",
    "metrics.RecorderMeter",  # syt2's SKNet saves its learning curve
    "utils.RecorderMeter",
)

Content = Mapping[Any, Any]


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, in float32 where they are floating point, on the CPU, detached, perhaps mapped from the file.

    ``peeled``: wrappers and prefixes taken off, outermost first, prefixes with their dot. ``dropped``: the entries that
    are no weights, by name, such as ``epoch`` and ``optimizer``.
    """

    tensors: dict[str, Tensor]
    peeled: tuple[str, ...]
    dropped: tuple[str, ...]


class Unread:
    """In place of a harmless object beside the weights: takes whatever the pickle gives it and keeps nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def read_checkpoint(path: Path) -> Checkpoint:
    """The weights in a safetensors file, a PyTorch checkpoint or a caffemodel.

    Raises WeightsError for a file that is missing, too large, truncated, foreign or unsafe, or that holds no weights;
    DependencyError without torch.
    """
    require_export("safetensors")
    require("torch", extra=EXTRAS)
    require_plain_name(path)
    try:
        with open_file(path) as file:
            size, head = path.stat().st_size, file.read(HEAD_BYTES)
    except OSError as error:
        raise WeightsError(f"cannot read the weights {path}: {error.strerror}") from error
    if size > MAX_FILE_BYTES:
        raise WeightsError(
            f"{path} has {size:,} bytes; a checkpoint may have {MAX_FILE_BYTES:,}",
            advice="save only model.state_dict(), without the optimizer",
        )
    read = next((reader for detects, reader in READERS if detects(head)), None)
    if read is None:
        raise WeightsError(
            f"{path} is {'not a safetensors file, a PyTorch checkpoint or a caffemodel' if head else 'empty'}",
            advice="save the weights with safetensors.torch.save_file(model.state_dict(), path)",
        )
    content, peeled, dropped = unwrapped(read(path), path)
    named = {key: value for key, value in content.items() if is_tensor(value)}
    dropped += [key for key in content if key not in named]
    _check_names(named, path)
    named, counted = without_counters(named)
    dropped += counted
    _check_tensors(named, size, path)
    while prefix := _shared_prefix(named):
        named = {key.removeprefix(prefix): tensor for key, tensor in named.items()}
        peeled.append(prefix)
    return Checkpoint(
        {key: _in_memory(tensor) for key, tensor in named.items()}, tuple(peeled), tuple(map(label, dropped))
    )


# ----- one reader a format


def read_safetensors(path: Path) -> Content:
    """Offsets, sizes and the header are checked by the library."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} is not a whole safetensors file: {error}", advice="copy or download it again"
        ) from error


def read_torch_zip(path: Path) -> Any:
    members = _zip_members(path)
    # A mapped storage is the bytes as they lie in the file, so nothing may be packed; torch.load gives a path that is
    # called .safetensors to that library, whatever is in it.
    as_it_lies = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if as_it_lies and path.suffix != ".safetensors":
        return _torch_load(path, path, mmap=True)
    return read_pickle(path)


def read_pickle(path: Path) -> Any:
    """PyTorch's format before 1.6, and a zip that cannot be mapped."""
    with path.open("rb") as file:
        return _torch_load(path, file, mmap=False)


# A format is told by how the file begins, never by its name. The first that detects it reads it.
READERS: Final[tuple[tuple[Callable[[bytes], bool], Callable[[Path], Any]], ...]] = (
    # safetensors before pickles: its first byte is a length, which may be 0x80
    (lambda head: head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES, read_safetensors),
    (lambda head: head.startswith(b"PK\x03\x04"), read_torch_zip),
    (lambda head: head.startswith(b"\x80"), read_pickle),
    (is_caffemodel, read_caffemodel),
)


class _ShortReads(io.FileIO):
    """A file for zipfile, which reads the whole list of members at once, whatever length the archive gives it."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its list of members has {size:,} bytes")
        return super().read(-1 if size is None else size)


def _zip_members(path: Path) -> list[zipfile.ZipInfo]:
    """The members of an archive that is safe to unpack. Raises WeightsError for a bomb and for a program."""
    try:
        with _ShortReads(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise WeightsError(
            f"{path} is not a whole PyTorch checkpoint of tensors: {error}", advice="copy or download it again"
        ) from error
    size, unpacked = path.stat().st_size, sum(member.file_size for member in members)
    bomb = ""
    if len(members) > MAX_TENSORS:
        bomb = f"it has {len(members):,} members, more than {MAX_TENSORS:,}"
    elif unpacked > MAX_FILE_BYTES:
        bomb = f"it unpacks to {unpacked:,} bytes, more than {MAX_FILE_BYTES:,}"
    elif unpacked > MAX_EXPANSION * size:
        bomb = f"it unpacks to {unpacked / size:.0f} times its size, which weights never do"
    if bomb:
        raise WeightsError(f"{path} is refused: {bomb}", advice="save model.state_dict() again with torch.save")
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise WeightsError(
            f"{path} is refused: it is a TorchScript archive, which is a program",
            advice="if you trust it, convert it: safetensors.torch.save_file(torch.jit.load(path).state_dict(), ...)",
        )
    return members


def _torch_load(path: Path, source: Path | io.BufferedReader, *, mmap: bool) -> Any:
    import pickle

    import torch
    from torch.serialization import safe_globals

    try:
        with warnings.catch_warnings(), safe_globals([(Unread, name) for name in HARMLESS]):
            warnings.simplefilter("ignore")  # about pickle protocols: what fails raises, and is told below
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # on damaged bytes the unpickler raises anything, IndexError and struct.error included
        unsafe = re.search(r"GLOBAL \S+", str(error))
        if unsafe:
            raise WeightsError(
                f"{path} is refused: it holds more than tensors, and reading it could run code: {unsafe[0]}",
                advice=SAVE_TENSORS,
            ) from error
        if isinstance(error, pickle.UnpicklingError):
            raise WeightsError(
                f"{path} is refused: it holds something other than tensors, or is damaged: {_reason(error)}",
                advice="save model.state_dict() with safetensors on a machine where it loads",
            ) from error
        raise WeightsError(
            f"{path} is not a whole PyTorch checkpoint of tensors: {_reason(error)}",
            advice="copy it again; if that does not help, save model.state_dict() with safetensors on a machine "
            "where it loads",
        ) from error


def _reason(error: Exception) -> str:
    """One line of what torch.load says, without its advice to load the file unsafely."""
    lines = [line.strip() for line in str(error).rpartition("WeightsUnpickler error:")[2].splitlines() if line.strip()]
    if not lines or "weights_only" in lines[0]:
        return type(error).__name__
    return lines[0]


# ----- what is in it


def _check_names(tensors: Mapping[Any, Tensor], path: Path) -> None:
    nameless = [key for key in tensors if not isinstance(key, str) or not key or not key.isprintable()]
    if nameless:
        raise WeightsError(
            f"{path} does not hold a state_dict: these tensors have no name: {some(list(map(label, nameless)), 10)}",
            advice="save model.state_dict()",
        )


def _check_tensors(tensors: Mapping[str, Tensor], size: int, path: Path) -> None:
    """Raises WeightsError unless all are plain tensors whose values are in the file. ``size``: its bytes."""
    import torch

    if len(tensors) > MAX_TENSORS:
        raise WeightsError(f"{path} is refused: it has {len(tensors):,} tensors, more than {MAX_TENSORS:,}")
    odd = [
        f"{key}: {tensor.dtype}, {tensor.layout}, on {tensor.device}"
        for key, tensor in tensors.items()
        if tensor.layout != torch.strided or tensor.is_nested or tensor.device.type != "cpu" or tensor.is_quantized
    ]
    if odd:
        raise WeightsError(
            f"{path} holds tensors that are not plain arrays of numbers: {some(odd, 10)}",
            advice="give the weights from training, before any quantization or conversion",
        )
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    spread = [key for key, tensor in tensors.items() if tensor.nbytes > tensor.untyped_storage().nbytes()]
    claimed = 4 * sum(tensor.numel() for tensor in tensors.values())
    if spread or claimed > MAX_FILE_BYTES or sum(storages.values()) > MAX_EXPANSION * size:
        raise WeightsError(
            f"{path} is refused: its tensors claim to have more values than the file holds"
            + (f": {some(spread, 10)}" if spread else ""),
            advice="save them with .contiguous()",
        )


def _shared_prefix(tensors: Mapping[str, Tensor]) -> str | None:
    """A known prefix that all names carry, with something behind it."""
    return next((p for p in PREFIXES if all(key.startswith(p) and key != p for key in tensors)), None)


def _in_memory(tensor: Tensor) -> Tensor:
    """As it is if it is float32 already; a mapped one whose values do not begin where a processor likes them is copied."""
    plain = tensor.detach()
    if plain.data_ptr() % plain.element_size():
        plain = plain.clone()
    return plain.float() if plain.is_floating_point() else plain

"""Arrays of an .npz or .npy that somebody gave: no code runs, and no more memory is taken than the file can fill."""

from __future__ import annotations

import io
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from skdeploy.core.errors import UsageError
from skdeploy.core.files import open_file
from skdeploy.core.listing import some

PIECE: Final = 64 * 1024  # bytes read at a time: memory of more than 128 KiB is new to the C library each time
DEFLATE: Final = 1032  # zlib's largest ratio, 258 bytes from 2 bits: zlib.net/zlib_tech.html
# What NumPy and zipfile raise on files that are not what they seem; RuntimeError for encryption and unknown compression.
READING: Final = (
    OSError, ValueError, TypeError, EOFError, RuntimeError, OverflowError, MemoryError, SyntaxError, struct.error,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


class PickledError(ValueError):
    """An array of Python objects."""


def read_npz_or_npy(
    source: Path, wanted: Iterable[str], advice: str = "save with np.savez(file, images=...)"
) -> dict[str, NDArray[Any]] | NDArray[Any]:
    """The one array of an .npy, or those of an .npz that are ``wanted`` and there. The content tells which it is, not the name.

    Raises UsageError: not readable, truncated, pickled, encrypted, or a header that says more than the file holds.
    """
    with _told(source), open_file(source) as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return _array(file, source.stat().st_size)
        with zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            found = {}
            for name, info in ((name, members[name]) for name in wanted if name in members):
                found[name] = _member(archive, info)
            if not found:
                there = some(list(map(repr, sorted(members))))
                raise UsageError(
                    f"{source} has no array named {next(iter(wanted))!r}, only {there or 'nothing'}", advice=advice
                )
            return found


def arrays_inside(content: bytes) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz in memory, by name. Raises one of ``READING``, as ``read_npz_or_npy`` refuses a file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {info.filename.removesuffix(".npy"): _member(archive, info) for info in archive.infolist()}


def names_of_arrays(source: Path) -> frozenset[str]:
    """The names of the arrays in an .npz; none in another file. Raises UsageError: not readable."""
    with _told(source), open_file(source) as file:
        if not zipfile.is_zipfile(file):
            return frozenset()
        with zipfile.ZipFile(file) as archive:
            return frozenset(name.removesuffix(".npy") for name in archive.namelist())


def shapes_of_arrays(source: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays in an .npz by name, and that of an .npy under an empty name; no values are read.

    Raises UsageError.
    """
    with _told(source), open_file(source) as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return {"": _header(file)[0]}
        shapes = {}
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                with archive.open(info) as member:
                    shapes[info.filename.removesuffix(".npy")] = _header(member)[0]
        return shapes


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    """One array of an .npz. Raises one of ``READING``."""
    if info.compress_type == zipfile.ZIP_DEFLATED and info.file_size > DEFLATE * (info.compress_size + 1):
        raise ValueError(f"{info.filename} claims {info.file_size} bytes, which {info.compress_size} cannot hold")
    with archive.open(info) as member:
        return _array(member, info.file_size)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran's order and type of an array in .npy form, whose content comes next. Raises one of ``READING``."""
    version = npy.read_magic(file)
    if version == (1, 0):
        return npy.read_array_header_1_0(file)
    if version == (2, 0):
        return npy.read_array_header_2_0(file)
    raise ValueError(f"its .npy format is version {version[0]}.{version[1]}, for names of fields in Unicode")


def _array(file: IO[bytes], size: int) -> NDArray[Any]:
    """One array in .npy form of ``size`` bytes in all. Raises one of ``READING``."""
    shape, fortran, dtype = _header(file)
    if dtype.hasobject:
        raise PickledError("it holds Python objects, which run code when they are read")
    count = prod(shape)
    if count < 0 or count * dtype.itemsize > size:
        raise ValueError(f"its header says {dtype} of shape {shape}, but the file holds {size} bytes")
    content = np.empty(count * dtype.itemsize, np.uint8)
    place = content.data
    done = 0
    while done < len(
        place
    ):  # in pieces: zipfile would hold all of it twice more, and new memory costs more than reading
        piece = file.read(min(PIECE, len(place) - done))
        if not piece:
            raise EOFError(f"it ends after {done} of {len(place)} bytes")
        place[done : done + len(piece)] = piece
        done += len(piece)
    file.read(1)  # so that zipfile comes to the end, and compares the checksum
    array: NDArray[Any] = content.view(dtype).reshape(shape, order="F" if fortran else "C")
    return array


@contextmanager
def _told(source: Path) -> Iterator[None]:
    try:
        yield
    except READING as error:
        why = getattr(error, "strerror", None)  # NumPy and zipfile raise OSErrors without, of what they read
        advice = "give a file" if why else "it is truncated or not a NumPy file"
        if isinstance(error, PickledError):
            advice = "save plain arrays of numbers, all of one shape, without None"
        said = why or " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"cannot read {source}: {said}", advice=advice) from error

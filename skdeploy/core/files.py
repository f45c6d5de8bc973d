"""Files: their digests, and the only way that skdeploy writes one: whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader, FileIO
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

from skdeploy.core.errors import IntegrityError, UsageError

PARTIAL_SUFFIX = ".partial"
KINDS = (
    (stat.S_ISFIFO, "a pipe, not a file"),
    (stat.S_ISDIR, "a folder, not a file"),
    (stat.S_ISCHR, "a device, not a file"),
    (stat.S_ISBLK, "a device, not a file"),
    (stat.S_ISSOCK, "a socket, not a file"),
)
SIDE_SUFFIX = ".data"
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
NO_NAMES = (errno.ENAMETOOLONG, errno.ELOOP)  # whatever asks for such a file gets one of these, ``Path.exists`` too
_UNWRITABLE_ADVICE = "check its permissions, or give another path"
LONGEST_NAME: Final = 255 - len(
    f"..{'x' * 12}{PARTIAL_SUFFIX}"
)  # bytes: file systems take 255, and of ``partial_name``
SHOWN: Final = 100  # characters of a name that is too long
AT_ONCE: Final = 1 << 20  # bytes: what asks for more is compared with what is left


class _Bounded(BufferedReader):
    """Reserves no more memory for a read than the file has bytes left: a damaged length may ask for gigabytes."""

    def __init__(self, number: int, size: int) -> None:
        super().__init__(FileIO(number, "rb"))
        self._size = size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > AT_ONCE:
            size = min(size, max(0, self._size - self.tell()))
        return super().read(size)


def open_file(path: Path, at_most: int | None = None) -> BufferedReader:
    """Open a file to read it.

    Raises OSError, whose ``strerror`` says why: not there, not readable, not a file (a pipe may never end), or of more than
    ``at_most`` bytes.
    """
    try:
        number = os.open(
            path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        )  # the open itself would wait for a pipe's writer
    except ValueError as error:
        raise OSError(errno.EINVAL, "a file name cannot hold the character NUL", str(path)) from error
    try:
        found = os.fstat(number)
        if kind := what_instead(found.st_mode):
            raise OSError(errno.EINVAL, f"it is {kind}", str(path))
        if at_most is not None and found.st_size > at_most:
            raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes; at most {at_most:,} are read", str(path))
    except OSError:
        os.close(number)
        raise
    return _Bounded(number, found.st_size)


def require_plain_name(path: Path) -> None:
    """Raise UsageError for a path that is not UTF-8, before a library reports it as a broken file: ONNX Runtime and safetensors
    open none.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{path}: the name is not UTF-8, and ONNX Runtime and safetensors open no such file",
            advice="rename it, or make a link to it that has another name",
        ) from error


def what_instead(mode: int) -> str:
    """Name what is there, by its ``st_mode``, where a file should be; empty for a file."""
    if stat.S_ISREG(mode):
        return ""
    return next((words for is_kind, words in KINDS if is_kind(mode)), "not a file")


def read_file(path: Path, at_most: int | None = None) -> bytes:
    """The bytes of a file. Raises OSError as ``open_file``."""
    with open_file(path, at_most) as file:
        return file.read()


def digest_file(path: Path) -> str:
    """SHA-256 of a file, streamed. Raises IntegrityError if it cannot be read."""
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise IntegrityError(
            f"cannot read {path}: {error.strerror}", advice="make it readable, or restore it"
        ) from error


def digest_json(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; renamed to ``path`` at the end, removed on any error.

    Missing folders are made, and removed again on an error unless something else is in them by then. Raises IntegrityError for
    a full disk and UsageError for a folder that takes no files; ``path`` is then as it was.
    """
    with ExitStack() as undo:
        try:
            partial = _partial_in_place(path, undo)
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            raise write_error(path, error) from error
        undo.pop_all()


def side_file(path: Path) -> Path:
    """The second file of a file, ``NAME.data`` beside it. ``path`` may be the temporary name that ``written_whole`` gave."""
    name = path.name
    if name.endswith(PARTIAL_SUFFIX):
        name = name.removeprefix(".").removesuffix(PARTIAL_SUFFIX).rpartition(".")[0]
    return path.with_name(name + SIDE_SUFFIX)


def require_places(*paths: Path | None) -> None:
    """Raises as ``written_whole`` for a file that cannot be written, before the work that fills it. Leaves nothing there."""
    for path in paths:
        if path is not None:
            with ExitStack() as undo:
                try:
                    _partial_in_place(path, undo)
                except OSError as error:
                    raise write_error(path, error) from error


def _partial_in_place(path: Path, undo: ExitStack) -> Path:
    """The temporary name, tried once: a place that takes no file is reported before the work, which may take minutes."""
    for folder in _missing_folders(path.parent):
        if _make(folder):
            undo.callback(_remove_if_empty, folder)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not path.is_file():  # renaming would put a file in place of /dev/null
        raise UsageError(f"cannot write {path}: it is a device or a pipe, not a file", advice="give a file name")
    partial = path.with_name(partial_name(path.name))
    partial.touch(exist_ok=False)
    partial.unlink()
    undo.callback(_remove, partial)
    return partial


def partial_name(name: str) -> str:
    """A name for what will be ``name`` once it is whole. No other process has it: a process id is 1 in every container."""
    return f".{name}.{secrets.token_hex(6)}{PARTIAL_SUFFIX}"


def _missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that do not exist, the uppermost first."""
    missing = takewhile(lambda above: not above.is_dir(), (folder, *folder.parents))
    return list(missing)[::-1]


def _make(folder: Path) -> bool:
    """Whether it was made here; not if another process was faster. Raises OSError."""
    try:
        folder.mkdir()
    except FileExistsError:
        if folder.is_dir():
            return False
        raise
    return True


def _remove(partial: Path) -> None:
    with suppress(OSError):  # a read-only place refuses it even for a file that is not there; the first error is told
        partial.unlink()


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # another process uses or has removed it; the error to tell is the one that led here
        folder.rmdir()


def write_text(path: Path, text: str) -> None:
    """Replaces a small text file, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def name_error(what: str, error: OSError) -> UsageError:
    """Explain one of ``NO_NAMES``: no file can have the name, or its links lead in a circle."""
    return UsageError(
        f"{what}: {error.strerror}",
        advice=f"give another name, of at most {LONGEST_NAME} bytes between two slashes, or mend the link",
    )


def shortened(name: str) -> str:
    """The beginning of a name that is too long to be read."""
    return f"{name[:SHOWN]}..." if len(name) > SHOWN else name


def write_error(path: Path, error: OSError) -> IntegrityError | UsageError:
    """Explain an OSError while writing to ``path``: a full disk, or a place that cannot be written to."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return IntegrityError(
            f"no space left to write {path}: {error.strerror}",
            advice="free some disk space and run the same command again: finished steps are kept",
        )
    if error.errno in UNWRITABLE:
        return UsageError(f"cannot write {path}: {error.strerror}", advice=_UNWRITABLE_ADVICE)
    if error.errno in NO_NAMES:
        return name_error(f"cannot write {shortened(str(path))}", error)
    return IntegrityError(f"cannot write {path}: {error.strerror or error}")

"""The outputs of one artifact for some samples, kept in the user's cache folder: for a killed run, and for later ones.

An entry belongs to one artifact on one backend, so that whatever it is compared with next need not run it again. Whoever may
write here decides a gate, so the folder must belong to this user alone; and who uses an entry runs a few of its samples again,
see ``reuse.py``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skdeploy.core.errors import SkdeployError
from skdeploy.core.files import read_file, written_whole
from skdeploy.images.audit_report import Unreadable
from skdeploy.images.numpy_file import READING, arrays_inside

KEPT: Final = 256  # files
KEPT_BYTES: Final = 2 * 10**9  # 50,000 images of 1,000 classes are 200 MB for each artifact
FOLDER: Final = "predictions"
EARLIER: Final = "evaluations"  # of versions that kept what several artifacts gave in one file: removed

Columns = Mapping[str, NDArray[Any]]


class Kept:
    """One file for one key, see ``reuse.key_of``. Two runs at once may share it: each replaces it whole, and whatever is in
    it is right. Where the folder cannot be used, ``problem`` says why.
    """

    def __init__(self, key: str) -> None:
        folder = cache_folder()
        self.path = folder / f"{key}.npz" if folder else None
        self.problem = "" if folder else "there is no home folder, and XDG_CACHE_HOME is not set"
        if folder is not None and (foreign := not_ours(folder)):
            self.path, self.problem = None, foreign

    def load(self, into: Columns) -> tuple[int, dict[int, Unreadable], str]:
        """Fills the first rows of ``into``, arrays of N rows each, from an earlier run.

        Returns how many, which of them could not be read, and a note if there is a file that cannot be used.
        """
        if self.path is None:
            return 0, {}, ""
        try:
            # Read whole: another run may remove the file meanwhile.
            content = arrays_inside(read_file(self.path, KEPT_BYTES))
            found: dict[str, NDArray[Any]] = {name: content[name] for name in (*into, "unreadable")}
            done, unreadable = _fitting(found, into)
            os.utime(self.path)  # used: the oldest are forgotten first
        except (FileNotFoundError, NotADirectoryError):
            return 0, {}, ""
        except (*READING, KeyError, RecursionError) as error:
            return 0, {}, f"cannot use the predictions of an earlier run, so all are made again: {self.path}: {error}"
        for name, column in into.items():
            column[:done] = found[name]
        return done, unreadable, ""

    def save(self, columns: Columns, done: int, unreadable: Mapping[int, Unreadable]) -> bool:
        """Replaces the file. False if it cannot be written; ``problem`` then says why, and no further try is made."""
        if self.path is None or self.problem:
            return False
        rows = json.dumps([[row, image.name, image.reason] for row, image in sorted(unreadable.items())]).encode()
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with written_whole(self.path) as partial, partial.open("wb") as file:
                arrays: dict[str, Any] = {name: column[:done] for name, column in columns.items()}
                np.savez(file, unreadable=np.frombuffer(rows, np.uint8), **arrays)
            _forget_oldest(self.path.parent)
        except SkdeployError as error:  # what cannot be cached is evaluated all the same, and the caller says so
            self.problem = error.message
            return False
        except OSError as error:
            self.problem = f"{self.path.parent}: {error.strerror}"
            return False
        return True


def _fitting(found: Columns, into: Columns) -> tuple[int, dict[int, Unreadable]]:
    """How many rows there are, and the unreadable ones. Raises ValueError if they are not what ``into`` takes."""
    done = {len(found[name]) if found[name].ndim else -1 for name in into}
    rows = json.loads(found["unreadable"].tobytes().decode())
    unreadable = {row: Unreadable(name=name, reason=reason) for row, name, reason in rows}
    (count,) = done if len(done) == 1 else (-1,)
    for name, column in into.items():
        one = found[name]
        if one.dtype != column.dtype or one.shape[1:] != column.shape[1:] or not 0 <= count <= len(column):
            raise ValueError("its content does not belong to this evaluation")
    if not all(isinstance(row, int) and 0 <= row < count for row in unreadable):
        raise ValueError("its content does not belong to this evaluation")
    return count, unreadable


def cache_folder() -> Path | None:
    """``predictions`` in skdeploy's folder of the user's cache: XDG_CACHE_HOME if it is an absolute path, else ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if Path(given).is_absolute():
        return Path(given) / "skdeploy" / FOLDER
    try:
        return Path.home() / ".cache" / "skdeploy" / FOLDER
    except RuntimeError:
        return None


def not_ours(folder: Path) -> str:
    """Why what is in the folder is not to be trusted; empty if it is, or if there is no folder yet."""
    try:
        found = folder.stat()
    except OSError:
        return ""
    if found.st_uid != os.geteuid():
        return f"{folder} belongs to another user"
    if found.st_mode & 0o022:
        return f"other users may write to {folder}; run `chmod 700` on it"
    return ""


def _forget_oldest(folder: Path) -> None:
    """Two runs may both do so at once: a file that is already gone is not an error."""
    files: list[tuple[float, int, Path]] = []
    for file in folder.glob("*.npz"):
        try:
            status = file.stat()
        except FileNotFoundError:
            continue
        files.append((status.st_mtime, status.st_size, file))
    total = 0
    for number, (_, size, file) in enumerate(sorted(files, reverse=True)):
        total += size
        if number and (number >= KEPT or total > KEPT_BYTES):  # the newest stays, whatever its size
            file.unlink(missing_ok=True)
    for file in (folder.parent / EARLIER).glob("*.npz"):
        file.unlink(missing_ok=True)

"""File modes that bind root too, in this process and without another user.

To root every folder is open, so a test of "permission denied" must give something up. It must not become another user: if the
checkout, the interpreter or a package lies in a folder that only root may enter, that user's imports fail. Root without its
capabilities over files still owns what it owned, and reads what the modes let an owner read. ``test_file_modes.py`` holds that
no test changes its user.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
VERSION: Final = 0x20080522  # _LINUX_CAPABILITY_VERSION_3 of linux/capability.h: two words for each set
OVER_FILES: Final = 0b1111  # CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER: the first four bits


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Word(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextmanager
def binding() -> Iterator[None]:
    """Runs its body as a user whom file modes bind. It holds for this thread and those that it starts, not for programs that
    root starts: those get the capabilities back.
    """
    before = _capabilities("capget", (_Word * 2)())
    without = (_Word * 2)(*before)
    without[0].effective &= ~OVER_FILES
    _capabilities("capset", without)
    try:
        yield
    finally:
        _capabilities("capset", before)


def closed_to_its_user() -> Path | None:
    """A folder that Python needs and that the modes keep from this user, or None. Ask while they bind: root who works in the
    locked folder of another user has one.
    """
    for folder in (ROOT, Path(sys.base_prefix), *map(Path, sys.path)):
        try:
            os.scandir(folder).close()
        except PermissionError:
            return folder
        except (FileNotFoundError, NotADirectoryError):  # Python's own path names an archive that is not there
            continue
    return None


def _capabilities(call: str, words: ctypes.Array[_Word]) -> ctypes.Array[_Word]:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, call)(ctypes.byref(_Header(VERSION, 0)), words) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)} ({errno.errorcode[code]})")
    return words

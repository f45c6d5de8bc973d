"""Where the TensorRT provider of ONNX Runtime keeps the engines that it builds, and why that is safe to load from.

Opening a graph with that provider builds an engine, which takes minutes; the provider writes it to a folder and reads it back
the next time. An engine is native code, so the folder must be one that nobody else can write to, as ssh asks of its keys: each
folder from the root down belongs to this user or to root, and others may not write to it. Within it, ``digests.json`` holds the
SHA-256 of each file as it was when the provider had written it. A file that was cut short or changed since is not loaded: the
folder is emptied and the engine built again.

What is not checked: this user's own processes. Whoever can write here can write the digests too, and could as well change
the program. Digests find damage, the permissions keep others out.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from skdeploy.core.errors import IntegrityError, UsageError
from skdeploy.core.files import digest_file, write_error, write_text

DIGESTS: Final = "digests.json"
LOCK: Final = ".lock"


def default_root() -> Path:
    """``onnxruntime-engines`` in skdeploy's folder of the user's cache. Raises UsageError for a user without a home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if Path(given).is_absolute():
        return Path(given) / "skdeploy" / "onnxruntime-engines"
    try:
        return Path.home() / ".cache" / "skdeploy" / "onnxruntime-engines"
    except RuntimeError as error:
        raise UsageError(
            f"cannot make a folder for engines: {error}",
            advice="set XDG_CACHE_HOME, or give --backend-option cache=FOLDER",
        ) from error


@contextmanager
def engine_folder(root: Path, key: str) -> Iterator[Path]:
    """The folder ``key`` in ``root``, made if need be, for one process at a time; its files get their digests at the end.

    Another process with the same key waits, and then finds the engine. Raises UsageError for a folder that others can write to
    or that cannot be made, IntegrityError for a full disk.
    """
    folder = root / key
    try:
        for missing in [part for part in (folder, *folder.parents) if not part.exists()][::-1]:
            missing.mkdir(mode=0o700, exist_ok=True)  # with `parents`, those above would have the umask's mode
        require_private(folder)
        with (folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_whole(folder):
                _empty(folder)
            yield folder
            write_text(folder / DIGESTS, json.dumps(_digests(folder), indent=1) + "\n")
    except OSError as error:
        raise write_error(folder, error) from error


def require_private(folder: Path) -> None:
    """Raises UsageError if anyone but this user and root can change what is in ``folder``, or put another in its place."""
    resolved = folder.resolve()
    for part in (resolved, *resolved.parents):
        found = part.stat()
        shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if part != resolved and found.st_mode & stat.S_ISVTX:
            shared = 0  # like /tmp: others add to it, and cannot rename or remove what is not theirs
        if found.st_uid not in (os.geteuid(), 0) or shared:
            raise UsageError(
                f"engines are native code, and other users can write to {part} (mode "
                f"{stat.S_IMODE(found.st_mode):04o}, owner {found.st_uid}): nothing is loaded from {folder}",
                advice="make it private (chmod go-w), or give --backend-option cache=FOLDER or cache=off",
            )


def is_whole(folder: Path) -> bool:
    """Whether the files are those, and no others, that ``digests.json`` lists; an empty folder is whole too."""
    try:
        recorded = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        recorded = {}
    except (UnicodeDecodeError, json.JSONDecodeError):
        return False
    try:
        return bool(recorded == _digests(folder))
    except IntegrityError:  # a folder or a dangling link among the files: none that was written here
        return False


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: digest_file(path) for path in sorted(folder.iterdir()) if path.name not in (DIGESTS, LOCK)}


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

"""Bundles in a volume, one entry a device and a bundle: ``<cache>/<device key>/<bundle key>/``, whole or not there at all.

An entry is a copy of the bundle to which engines are added; the bundle itself may be read-only. One process at a time makes an
entry: the lock is the operating system's, ends with its process, and holds between containers that share the volume.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from skdeploy.bundle.contents import PARITY
from skdeploy.bundle.folder import MANIFEST, Bundle, load_bundle
from skdeploy.bundle.receipts import FOLDER as RECEIPTS
from skdeploy.bundle.receipts import slug
from skdeploy.core.errors import IntegrityError, SkdeployError, UsageError
from skdeploy.core.files import PARTIAL_SUFFIX, UNWRITABLE, digest_file, partial_name
from skdeploy.core.progress import Progress
from skdeploy.devices.cuda import CudaDevice

KEY_LENGTH: Final = 16  # hex digits of a manifest's sha256
ENTRY: Final = re.compile(f"[0-9a-f]{{{KEY_LENGTH}}}")


def device_key(backend: str, runtime: str, device: CudaDevice | None, driver: str) -> str:
    """The folder of one device: what an engine is tied to. ``runtime`` is the version of what builds it, ``driver`` the newest
    CUDA version that the driver serves; without a GPU, the backend on the CPU.
    """
    if device is None:
        return f"cpu-{slug(backend)}"
    parts = (device.name, f"cc{device.compute_capability}", backend, runtime, f"driver{driver}")
    return "-".join(slug(part) for part in parts)


def bundle_key(bundle: Bundle) -> str:
    """The manifest's digest, which names every file of the bundle by its own. Raises IntegrityError if it cannot be read."""
    return digest_file(bundle.folder / MANIFEST)[:KEY_LENGTH]


@contextmanager
def locked(entry: Path, wait_s: float, progress: Progress) -> Iterator[None]:
    """The one that may make this entry; others wait for it, ``wait_s`` seconds at most.

    Raises IntegrityError when that time is over or the volume is full, UsageError for a cache that takes no files.
    """
    from filelock import FileLock, Timeout

    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(entry.with_name(f".{entry.name}.lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            progress.note(f"waiting at most {wait_s:g} s: another process is preparing {entry}")
            lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise IntegrityError(
            f"another process is still preparing {entry} after {wait_s:g} s",
            advice="start again when it has ended, or give a longer --wait",
        ) from error
    except OSError as error:
        raise cache_error(entry, error) from error
    try:
        yield
    finally:
        lock.release()


def fill(source: Bundle, entry: Path, progress: Progress) -> bool:
    """Makes ``entry`` a whole copy of ``source``; true if it was one already. Call it inside ``locked``.

    A damaged entry is reported and made again: it is only a copy. Raises IntegrityError for a bundle that is damaged or a
    full volume, UsageError for a cache that takes no files; nothing half-written stays.
    """
    for leftover in entry.parent.glob(f".{entry.name}.*{PARTIAL_SUFFIX}"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    if entry.exists():
        problem = damage(source, entry)
        if not problem:
            return True
        progress.note(f"the cache entry is damaged and is made again: {problem}")
        _remove(entry)
    source.check_all()  # before copying: the message names the bundle's own file
    partial = entry.with_name(partial_name(entry.name))
    try:
        for file in (file for artifact in source.manifest.artifacts for file in artifact.files):
            _copy(source.folder / file, partial / file)
        receipts = source.folder / RECEIPTS
        for receipt in sorted(receipts.glob("*.json")) if receipts.is_dir() else ():
            _copy(receipt, partial / RECEIPTS / receipt.name)
        _copy(source.folder / MANIFEST, partial / MANIFEST)
        load_bundle(partial).check_all()  # what a volume gives back is not always what was written
        partial.replace(entry)
    except OSError as error:
        raise cache_error(entry, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return False


def damage(source: Bundle, entry: Path) -> str:
    """Why an entry is not a whole copy of ``source``, engines added; empty if it is one."""
    try:
        cached = load_bundle(entry)
        cached.check_all()
    except SkdeployError as error:
        return error.message
    for artifact in source.manifest.artifacts:
        if artifact.format == "engine" or artifact.path == PARITY:  # a build replaces both
            continue
        found = cached.artifact(artifact.path)
        if found is None or found.sha256 != artifact.sha256:
            return f"{entry / artifact.path} is not the bundle's {artifact.path}"
    return ""


def others(entry: Path) -> tuple[tuple[Path, int], ...]:
    """The other entries of the cache and their sizes in bytes: of other bundles, devices or versions. Nothing removes them.

    By their names: a cache may lie in a folder that has bundles of the user's, and these are not ours to name.
    """
    found = []
    for folder in sorted(entry.parent.parent.glob("*/*")):
        if folder != entry and ENTRY.fullmatch(folder.name) and (folder / MANIFEST).is_file():
            size = sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
            found.append((folder, size))
    return tuple(found)


def cache_error(entry: Path, error: OSError) -> IntegrityError | UsageError:
    """Explain an OSError on the cache, and name other entries that could be deleted."""
    cache = entry.parent.parent
    if error.errno in UNWRITABLE:
        return UsageError(
            f"cannot write to the cache {cache}: {error.strerror}",
            advice=f"user {os.getuid()} needs write permission there: docker run -v engines:/cache, or give another "
            "folder with --cache",
        )
    could_go = shlex.join(str(folder) for folder, _ in others(entry))
    return IntegrityError(
        f"cannot write {entry}: {error.strerror or error}",
        advice="free some space and start again; nothing half-written is left"
        + (f". Entries that this bundle does not need: rm -r {could_go}" if could_go else ""),
    )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())


def _remove(entry: Path) -> None:
    """The manifest first: if it is killed in the middle, the rest is not a bundle, and the next start says so and continues."""
    try:
        (entry / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(entry)
    except OSError as error:
        raise cache_error(entry, error) from error

"""The cores that this process may use: those of its affinity, and of them what a container's CPU quota leaves.

Linux gives a quota (``docker run --cpus``) in the files of a control group: version 2 has ``cpu.max``, "QUOTA PERIOD" in
microseconds or "max PERIOD"; version 1 has ``cpu.cfs_quota_us``, -1 for none, and ``cpu.cfs_period_us``. The groups above one
bind it too. The kernel's documentation: admin-guide/cgroup-v2 and scheduler/sched-bwc.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

PROCESS: Final = Path("/proc/self")
_limits: Final[list[int]] = []  # one for each block of ``limited`` that is open
_sharing: Final[list[None]] = []  # one for each block of ``shared`` that is open


def cores() -> int:
    """How many threads can compute at a time: at least one. A quota of 2.5 cores is 2, since a third thread would be stopped
    for half of the time, and the others wait for it.
    """
    quota = quota_of()
    found = affinity() if quota is None else max(1, min(affinity(), int(quota)))
    return min(found, *_limits) if _limits else found


def thread_limit() -> int | None:
    """Threads for a runtime that is opened now: ``cores`` where a quota binds, half of them while two jobs share them, else
    None. A runtime's own choice, which looks at the affinity, is then right.
    """
    if _sharing:
        return max(1, cores() // 2)
    return limit if (limit := cores()) < affinity() else None


@contextmanager
def shared() -> Iterator[None]:
    """While this process has two jobs at work at a time. Threads that wait for each other lose more than they compute where
    there are more of them than cores: an export of SKNet-50 on two cores takes 25 s then, and 22.8 s with a thread a job.
    """
    _sharing.append(None)
    try:
        yield
    finally:
        _sharing.pop()


@contextmanager
def undivided() -> Iterator[None]:
    """While the other of two jobs waits: all cores are this one's."""
    before = list(_sharing)
    _sharing.clear()
    try:
        yield
    finally:
        _sharing.extend(before)


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """While this process leaves other cores to others, as the workers of a cluster do."""
    _limits.append(threads)
    try:
        yield
    finally:
        _limits.remove(threads)


def affinity() -> int:
    """The cores that this process may be scheduled on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota_of(process: Path = PROCESS) -> float | None:
    """The least quota of a process's control group and those above, in cores. None for none, or where Linux tells none."""
    return min(_quotas(process), default=None)


def _quotas(process: Path) -> Iterator[float]:
    try:
        groups = (process / "cgroup").read_text(errors="replace").splitlines()
        mounts = (process / "mountinfo").read_text(errors="replace").splitlines()
    except OSError:  # not Linux, or no /proc
        return
    for line in groups:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0" or "cpu" in controllers.split(","):
            for folder in _folders(path, "cgroup2" if hierarchy == "0" else "cgroup", mounts):
                quota = _quota(folder)
                if quota is not None:
                    yield quota


def _folders(path: str, kind: str, mounts: list[str]) -> Iterator[Path]:
    """The group's folder and those above it, if they are mounted. In a container only its own part is, and the path may
    be the host's: then the mount's own root is the group.
    """
    for line in mounts:  # ID PARENT DEVICE ROOT MOUNTPOINT OPTIONS [OPTIONAL ...] - TYPE SOURCE SUPER-OPTIONS
        before, _, after = line.partition(" - ")
        found, options = after.split()[0], after.split()[-1].split(",")
        if found != kind or (kind == "cgroup" and "cpu" not in options):
            continue
        root, top = (_unescaped(part) for part in before.split()[3:5])
        visible = PurePosixPath(path).is_relative_to(root) and ".." not in path
        folder = Path(top) / (PurePosixPath(path).relative_to(root) if visible else "")
        yield from (each for each in (folder, *folder.parents) if each.is_relative_to(top))


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), path)


def _quota(folder: Path) -> float | None:
    try:
        words = (folder / "cpu.max").read_text().split()
    except OSError:
        try:
            words = [(folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")]
        except OSError:  # the uppermost group has no such file, nor has one without the controller
            return None
    quota, period = words
    return None if quota in ("max", "-1") else int(quota) / int(period)

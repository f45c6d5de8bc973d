"""Is this a Jetson, and how much memory may a build take there? Its GPU has no memory of its own: what a build takes, the
desktop, the camera and the operating system lack, and Linux kills one of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

RELEASE: Final = Path("/etc/nv_tegra_release")  # written by JetPack
DEVICE_TREE: Final = Path("/proc/device-tree/compatible")  # names such as nvidia,tegra234, a NUL behind each

# TensorRT's defaults are all of the device's memory for both. A quarter and a half leave a quarter of what is free now.
WORKSPACE_SHARE: Final = 4
TACTIC_SHARE: Final = 2
_MIB: Final = 1 << 20


class MemoryLimits(NamedTuple):
    """Limits of a build in bytes; None is the compiler's default."""

    workspace_bytes: int | None
    tactic_bytes: int | None


def is_jetson() -> bool:
    """Whether this machine is a Jetson, in a container too as long as it sees the host's device tree. Never raises."""
    if RELEASE.exists():
        return True
    try:
        return b"nvidia,tegra" in DEVICE_TREE.read_bytes()
    except OSError:
        return False


def available_bytes() -> int:
    """Memory that a new process can use without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


def memory_limits(workspace_bytes: int | None, tactic_bytes: int | None) -> MemoryLimits:
    """The limits as given; on a Jetson those that are not given are a quarter and a half of the memory that is free now."""
    if not is_jetson():
        return MemoryLimits(workspace_bytes, tactic_bytes)
    free = available_bytes()
    return MemoryLimits(
        _whole_mib(free // WORKSPACE_SHARE) if workspace_bytes is None else workspace_bytes,
        _whole_mib(free // TACTIC_SHARE) if tactic_bytes is None else tactic_bytes,
    )


def _whole_mib(count: int) -> int:
    return max(_MIB, count // _MIB * _MIB)

"""Memory that is freed: given back to the kernel by default, kept for the next use where a process asks for that."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from skdeploy.core.memory import give_back, keep_freed

# 64 blocks of 1 MB, each written to, then freed; says in MB what the process holds before and after that.
FREE = """
import sys
from skdeploy.core.memory import give_back, keep_freed
def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
if sys.argv[1] != "as it is":
    assert keep_freed()
blocks = [bytearray(b"x" * 1_000_000) for _ in range(64)]
full = held()
if sys.argv[1] == "give back":
    blocks.append(blocks)  # garbage that only the collector finds
del blocks
if sys.argv[1] == "give back":
    assert give_back()
print(full - held())
"""

glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or getattr(ctypes.CDLL(None), "mallopt", None) is None,
    reason="only glibc has mallopt, and only Linux /proc/self/statm",
)

LOADING = """
import gc
from skdeploy.core.memory import loading
for _ in range(2):
    with loading("wave"):
        import wave
    assert gc.isenabled()
    frozen = globals().setdefault("first", gc.get_freeze_count())
    garbage = []
    garbage.append(garbage)
    del garbage
    assert gc.get_freeze_count() == frozen > 1000
    assert gc.collect()
"""


def given_back(how: str) -> float:
    done = subprocess.run([sys.executable, "-c", FREE, how], capture_output=True, text=True, check=True)
    return float(done.stdout)


@glibc
def test_freed_memory_stays_with_a_process_that_asks_for_it() -> None:
    assert given_back("keep") < 8


@glibc
def test_freed_memory_goes_back_by_default() -> None:
    """What the check above would find without the call."""
    assert given_back("as it is") > 48


@glibc
def test_what_was_kept_goes_back_when_it_is_asked_for() -> None:
    assert given_back("give back") > 48


def test_a_c_library_without_the_call_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert keep_freed() is False
    assert give_back() is False


def test_what_is_loaded_is_spared_by_the_collector_and_garbage_is_not() -> None:
    run = [sys.executable, "-P", "-c", LOADING]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

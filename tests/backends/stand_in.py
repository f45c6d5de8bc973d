"""The driver of ``stand_in.c`` from Python: what was called, what is alive, and faults to come.

It is a ``libcuda.so.1`` that ``test_stand_in.py`` puts in the way of the loader, so ``cuda-bindings`` and our own calls are
the real ones. It goes into a process of its own: others must find no GPU on this machine.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

from skdeploy.devices.cuda import DRIVER_LIBRARY

KINDS: Final = ("context", "stream", "device memory", "host memory", "event", "graph", "executable graph")
COPY_MS: Final = 5.0  # stand_in.c
OUT_OF_MEMORY, ILLEGAL_ADDRESS, SYSTEM_DRIVER_MISMATCH, CAPTURE_INVALIDATED = 2, 700, 803, 901  # CUresult
VERSION: Final = "SKDEPLOY_TESTS_DRIVER_VERSION"  # what the stand-in was compiled for, as 12060
_Call = ctypes.CFUNCTYPE(None, ctypes.c_long)


class StandIn:
    """The one driver of this process, as new."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(DRIVER_LIBRARY)
        self._library.stand_in_clock_ms.restype = ctypes.c_double
        for name in ("calls", "faults"):
            getattr(self._library, f"stand_in_{name}").restype = ctypes.c_char_p
        self._library.stand_in_reset()
        self._kept: list[object] = []  # callbacks: the library has only their addresses

    def fail(self, function: str, code: int) -> None:
        """The next call of ``function`` answers ``code``."""
        self._library.stand_in_fail(function.encode(), code)

    def limit(self, largest: int) -> None:
        """No allocation has more bytes."""
        self._library.stand_in_largest(ctypes.c_size_t(largest))

    def put(self, stream: int, work: Callable[[], None], cost_ms: float) -> None:
        """On the stream, as a kernel of an engine."""
        call = _Call(lambda _: work())
        self._kept.append(call)
        put = self._library.stand_in_put
        assert put(ctypes.c_void_p(stream), call, ctypes.c_long(0), ctypes.c_double(cost_ms)) == 0, self.faults

    def has(self, kind: str, address: int) -> bool:
        return bool(self._library.stand_in_has(KINDS.index(kind), ctypes.c_void_p(address)))

    def note(self, call: str) -> None:
        self._library.stand_in_note(call.encode())

    @property
    def calls(self) -> list[str]:
        """Functions, in order; a form's suffix is left out."""
        return [name.removesuffix("_v2") for name in self._library.stand_in_calls().decode().splitlines()]

    @property
    def faults(self) -> list[str]:
        """Calls that no real driver would have survived, as freeing twice."""
        return list(self._library.stand_in_faults().decode().splitlines())

    @property
    def alive(self) -> dict[str, int]:
        """What is not freed, by kind."""
        counts = {kind: int(self._library.stand_in_alive(number)) for number, kind in enumerate(KINDS)}
        return {kind: count for kind, count in counts.items() if count}

    @property
    def clock_ms(self) -> float:
        return float(self._library.stand_in_clock_ms())

    @property
    def recording(self) -> bool:
        return bool(self._library.stand_in_recording())

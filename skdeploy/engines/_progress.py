"""From TensorRT's progress monitor to a plain callback, and from Ctrl-C, SIGTERM or an exception to a cancelled build.

The bindings drop what a logger or a monitor raises, so an exception is kept here until TensorRT has stopped.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from skdeploy.engines._api import Compiler

_Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None


class Progress:
    """Calls ``on_progress(phase, fraction)``; ``failure`` is what it raised, or what a signal meant, which ends the calls."""

    def __init__(self, on_progress: Callable[[str, float], None]) -> None:
        self._on_progress = on_progress
        self._steps: dict[str, int] = {}
        self._fraction: dict[str, float] = {}
        self.failure: BaseException | None = None

    def check(self) -> None:
        """Raises what was kept, where no frame of TensorRT is in the way."""
        if self.failure is not None:
            raise self.failure

    def start(self, phase: str, steps: int) -> None:
        """A phase of ``steps`` steps begins, or begins again."""
        self._steps[phase], self._fraction[phase] = steps, 0.0
        self._report(phase)

    def step(self, phase: str, step: int) -> bool:
        """Step number ``step``, from 0, is done. False cancels the build."""
        reached = min(1.0, (step + 1) / max(1, self._steps[phase]))
        self._fraction[phase] = max(self._fraction[phase], reached)  # steps of parallel work come in any order
        self._report(phase)
        return self.failure is None

    def finish(self, phase: str) -> None:
        """A phase ends, all its steps done or not."""
        self._fraction[phase] = 1.0
        self._report(phase)

    def _report(self, phase: str) -> None:
        if self.failure is not None:
            return
        try:
            self._on_progress(phase, self._fraction[phase])
        except BaseException as failure:  # noqa: BLE001  (kept, and raised by check)
            self.failure = failure


def progress_monitor(trt: Compiler, progress: Progress) -> object:
    """An IProgressMonitor that reports to ``progress``; its class is made here, for its base is the given module's."""

    def initialise(monitor: object) -> None:
        trt.IProgressMonitor.__init__(monitor)  # type: ignore[misc]  # pybind11 wants its own __init__ called by name

    methods = {
        "__init__": initialise,
        "phase_start": lambda _, phase, _parent, steps: progress.start(phase, steps),
        "step_complete": lambda _, phase, step: progress.step(phase, step),
        "phase_finish": lambda _, phase: progress.finish(phase),
    }
    monitor: object = type("ProgressMonitor", (trt.IProgressMonitor,), methods)()
    return monitor


@contextmanager
def interrupts_kept(progress: Progress) -> Iterator[None]:
    """Inside the block, Ctrl-C becomes ``progress.failure`` instead of an exception in whichever callback runs next.

    So does SIGTERM where the caller has a handler for it that raises; without one it ends the process at once, as ever. Only
    Python's main thread gets signals; in another thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous: dict[signal.Signals, _Handler] = {}

    def keep(number: int, frame: FrameType | None) -> None:
        handler = previous[signal.Signals(number)]
        try:
            if callable(handler):
                handler(number, frame)
            elif number == signal.SIGINT:
                raise KeyboardInterrupt
        except BaseException as failure:  # noqa: BLE001  (kept, and raised by Progress.check)
            progress.failure = failure

    handled = [signal.SIGINT, *([signal.SIGTERM] if callable(signal.getsignal(signal.SIGTERM)) else [])]
    for number in handled:
        previous[number] = signal.getsignal(number)
    try:
        for number in handled:
            signal.signal(number, keep)
        yield
    finally:
        for number in handled:
            handler = previous[number]
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

"""One job a thread of a worker holds open, so that the next shard of the same job finds its graphs loaded."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from skdeploy.core.packages import require
from skdeploy.shards.part import Job

Opened = TypeVar("Opened")


class _Thread(threading.local):
    key: object = None
    opened: object = None
    stack: ExitStack | None = None


_thread = _Thread()


def held(job: Job, options: object, open_it: Callable[[], AbstractContextManager[Opened]]) -> Opened:
    """The opened ``job`` with these ``options``; it takes the place of another job, which is closed."""
    if _thread.key != (job, options):
        if _thread.stack is not None:
            _thread.key = _thread.opened = None
            _thread.stack.close()
        _thread.stack = ExitStack()
        _thread.opened = _thread.stack.enter_context(open_it())
        _thread.key = (job, options)
    opened: Opened = _thread.opened  # type: ignore[assignment]  # what was opened for this key
    return opened


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for the time of a job. On a Dask worker, inside its own, which is removed also where the worker was killed."""
    inside = None
    if "distributed" in sys.modules:
        try:
            inside = require("distributed", extra="cluster").get_worker().local_directory
        except ValueError:  # this thread does not work for a worker
            inside = None
    with tempfile.TemporaryDirectory(prefix="skdeploy-", dir=inside) as folder:
        yield Path(folder)

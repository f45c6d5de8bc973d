"""Progress of a long call: drawn where there is somebody to read it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from skdeploy.core.progress import Progress, Silent


@contextmanager
def told(progress: bool | Progress) -> Iterator[Progress]:
    """True draws the stages on stderr, which a notebook shows; False says nothing; any other object gets the calls itself."""
    if isinstance(progress, bool):
        if progress:
            from skdeploy.report.progress import ConsoleProgress

            with ConsoleProgress() as drawn:
                yield drawn
        else:
            yield Silent()
    else:
        yield progress

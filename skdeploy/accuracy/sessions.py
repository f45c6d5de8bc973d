"""Sessions of all that shall be judged, and the reasons of what cannot run here."""

from __future__ import annotations

from collections.abc import Sequence

from skdeploy.accuracy.gate import NotEvaluated
from skdeploy.backends.base import Session
from skdeploy.bundle.runners import Runner
from skdeploy.core.errors import DependencyError


def open_all(
    runners: Sequence[Runner], optional: Sequence[Runner]
) -> tuple[list[tuple[Runner, Session]], list[NotEvaluated]]:
    """Sessions of all that run here. Raises what opening one of ``runners`` raises; ``optional`` ones are recorded instead,
    where a package, driver or device is missing.
    """
    opened: list[tuple[Runner, Session]] = []
    absent: list[NotEvaluated] = []
    try:
        for runner in (*runners, *optional):
            try:
                opened.append((runner, runner.open()))
            except DependencyError as error:
                if runner in runners:
                    raise
                absent.append(NotEvaluated(artifact=runner.name, backend=runner.backend, reason=error.message))
    except BaseException:
        for _, session in opened:
            session.close()
        raise
    return opened, absent

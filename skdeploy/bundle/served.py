"""An artifact of a bundle that runs somewhere else, behind a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from skdeploy.backends.base import Session
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.receipts import RanOn


@dataclass(frozen=True)
class Served:
    """An artifact on a server. ``backend`` is its name in reports; ``ran_on`` is for receipts. ``notes`` say what else was
    tried there.

    ``open`` gives a session; closing it ends the connection.
    """

    artifact: Artifact
    backend: str
    ran_on: RanOn
    open: Callable[[], Session]
    notes: tuple[str, ...] = ()

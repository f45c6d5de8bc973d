"""Every registry of the package, with one more entry that is made outside of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from skdeploy.backends import BACKENDS
from skdeploy.checkpoints.layouts import LAYOUTS
from skdeploy.cli import VERBS, Verb
from skdeploy.core.architecture import SPECS
from skdeploy.core.precision import PRECISIONS
from skdeploy.line.formats import FORMATS
from skdeploy.line.rewrites import REWRITES
from skdeploy.parity.tasks import TASKS
from skdeploy.zoo import FAMILIES
from tests.outside import toy_backend, toy_family, toy_precision, toy_task, toy_verb

NAMES = ("toy", "coarse", "relu as max", toy_backend.NAME, "bearings", "list-sizes")


def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The toys of this folder, by the ``NAMES``, until the generator goes on."""
    for registry, name, made in (
        (SPECS, "toy", toy_family.ToySpec),
        (FAMILIES, "toy", toy_family.FAMILY),
        (LAYOUTS, "toy", toy_family.LAYOUT),
        (PRECISIONS, "coarse", toy_precision.COARSE),
        (FORMATS, "coarse", toy_precision.CoarseFormat),
        (REWRITES, "relu as max", toy_precision.MAX),
        (BACKENDS, toy_backend.NAME, toy_backend.__name__),
        (TASKS, "bearings", toy_task.Bearings(most_degrees=2.0)),
        (VERBS, "list-sizes", Verb(f"{toy_verb.__name__}:sizes", toy_verb.HELP)),
    ):
        monkeypatch.setitem(registry, name, made)  # type: ignore[arg-type]  # of as many types as there are registries
    for name in [name for name in sys.modules if name.startswith("skdeploy.cli.")]:  # their help was made without them
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in [name for name in sys.modules if name.startswith("skdeploy.cli.")]:
        del sys.modules[name]

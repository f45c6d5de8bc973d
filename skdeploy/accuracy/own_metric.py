"""``--metric module:function``: the user's own figure of one sample. It runs their code, so only a command line names it.

No card, manifest, bundle or options file can: opening what somebody else made must not run anything.
"""

from __future__ import annotations

import importlib
import math
import reprlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdeploy.core.errors import UsageError
from skdeploy.core.files import digest_file

Function = Callable[[dict[str, NDArray[Any]], NDArray[Any]], Any]
ADVICE = (
    "write `def metric(outputs, target)`: outputs by name and the target of one sample, as arrays; it returns a number, "
    "larger is better unless metric.lower_is_better is True"
)


@dataclass(frozen=True)
class OwnMetric:
    """``name`` is ``module:function``, ``file`` where its code is; ``sign`` is -1 if less is better."""

    name: str
    file: str
    function: Function
    sign: int

    def of(self, outputs: dict[str, NDArray[Any]], target: NDArray[Any], shown: str) -> float:
        """The figure of one sample. Raises UsageError, naming its target, if the function raises or gives no finite number."""
        try:
            found = self.function(outputs, target)
        except (
            Exception,
            SystemExit,
        ) as error:  # the user's own code can raise anything, and must not end a run with 0
            raise UsageError(
                f"--metric {self.name} failed on {shown}: {type(error).__name__}: {error}", advice=ADVICE
            ) from error
        real = isinstance(found, np.ndarray | np.generic) and found.ndim == 0 and found.dtype.kind in "biuf"
        is_number = real or isinstance(found, int | float)
        if not is_number or not _is_finite(found):
            said = reprlib.repr(found) if is_number else type(found).__name__
            raise UsageError(f"--metric {self.name} returned {said} for {shown}, not a finite number", advice=ADVICE)
        return float(found)


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(float(number))
    except OverflowError:  # an integer of more than 308 digits
        return False


def load_metric(place: str) -> OwnMetric:
    """Import a function by ``module:function``, from the working directory too. Raises UsageError."""
    module, _, attribute = place.partition(":")
    if not module or not attribute:
        raise UsageError(f"--metric {place}: must be module:function", advice=ADVICE)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does: the user's module is where the user is
    try:
        function: Any = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # the user's own code
        raise UsageError(
            f"--metric {place} cannot be imported: {type(error).__name__}: {error}",
            advice="check that the module can be imported from here",
        ) from error
    if not callable(function):
        raise UsageError(f"--metric {place} is a {type(function).__name__}, not a function", advice=ADVICE)
    file = getattr(sys.modules.get(module), "__file__", None) or "built in"
    return OwnMetric(place, file, function, -1 if getattr(function, "lower_is_better", False) else 1)


def file_digest(place: str) -> str:
    """SHA-256 of the file that a function is in; empty for one that is built in. Raises as ``load_metric``."""
    file = Path(load_metric(place).file)
    return digest_file(file) if file.is_file() else ""

"""Every error a user can cause or fix, one exit code each. Only ``__main__`` turns them into an exit."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pydantic import ValidationError


class SkdeployError(Exception):
    """An error for the user: ``message`` says what happened to which file or node and why, ``advice`` what to do next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.message}\n{self.advice}" if self.advice else self.message


class UsageError(SkdeployError):
    """The options, the paths or the images given make no sense."""

    exit_code = 2


class CardError(UsageError):
    """A card that does not exist, does not parse or describes no buildable network."""


class WeightsError(UsageError):
    """A checkpoint that is missing, broken, unsafe or belongs to another network."""


class DependencyError(SkdeployError):
    """A package, driver or device that this job needs is not here."""

    exit_code = 3


class ExportError(SkdeployError):
    """The network could not be traced to ONNX."""

    exit_code = 4


class PassError(SkdeployError):
    """A pass or the simplifier failed, or changed what the graph computes."""

    exit_code = 5


class PrecisionError(PassError):
    """A tensor does not fit the precision that was asked for."""


class CalibrationError(SkdeployError):
    """Calibration had no usable data or ranges."""

    exit_code = 6


class EngineError(SkdeployError):
    """The engine could not be built, or would not be what was asked for."""

    exit_code = 7


class ParityError(SkdeployError):
    """Two backends, or two artifacts, do not compute the same function."""

    exit_code = 8


class IntegrityError(SkdeployError):
    """A file is not the one that the manifest describes, or could not be written whole."""

    exit_code = 9


class AccuracyError(SkdeployError):
    """Accuracy against labels is outside the budget."""

    exit_code = 10


def first_problem(error: ValidationError, whole: str = "the file") -> str:
    """Where in a record pydantic found the first fault, and which; ``whole`` names the record itself."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or whole}: {first['msg']}"

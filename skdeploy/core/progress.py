"""How a long job tells what it is doing; the command line draws it, a library user may leave it silent."""

from __future__ import annotations


class Progress:
    """Receives the stages of a job as they happen."""

    def begin(self, stage: str) -> None:
        """A stage starts."""

    def update(self, detail: str) -> None:
        """Something moved inside the current stage."""

    def end(self, stage: str, seconds: float, *, reused: bool) -> None:
        """A stage is done, or its earlier result still holds (``reused``)."""

    def note(self, text: str) -> None:
        """Something that the user should know, though the job goes on."""


class Silent(Progress):
    """Tells nothing."""

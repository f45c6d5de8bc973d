"""A progress that keeps what a user is told."""

from __future__ import annotations

from skdeploy.core.progress import Silent


class Notes(Silent):
    """The notes, in their order."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

"""The Git repository that the user works in: its paths, and which files a fresh checkout would lack."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from skdeploy.core.errors import DependencyError, UsageError

EXPRESSION: Final = "${{"  # GitHub replaces what follows before any shell sees it


@dataclass(frozen=True)
class Repository:
    """A working tree. ``root`` is its top folder, with links resolved."""

    root: Path

    def inside(self, path: Path, what: str) -> str:
        """The path below ``root`` as a shell word's text, with slashes; no option: one that begins with a dash gets ``./``.

        Raises UsageError for a path outside, and for one that no workflow can hold.
        """
        absolute = Path(os.path.normpath(Path.cwd() / path))
        for place in (absolute, absolute.resolve()):
            if not place.is_relative_to(self.root):
                led = f", which leads to {place}," if place != absolute else ""
                raise UsageError(
                    f"{what} {path}{led} is outside the repository {self.root}: CI checks out the repository alone",
                    advice="copy it into the repository, large files with `git lfs track`; or keep its place there in "
                    ".gitignore and let a step of the workflow fetch it",
                )
        text = absolute.relative_to(self.root).as_posix()
        if EXPRESSION in text or not text.isprintable():
            why = (
                f"GitHub would evaluate {EXPRESSION}"
                if EXPRESSION in text
                else "it has a character that is not printable"
            )
            raise UsageError(f"{what} {str(path)!r} cannot stand in a workflow: {why}", advice="rename it")
        return f"./{text}" if text.startswith("-") else text

    def uncommitted(self, files: Iterable[Path]) -> list[str]:
        """Those of ``files`` that Git does not track or that differ from its index, below ``root``."""
        names = {os.path.relpath(os.path.normpath(Path.cwd() / file), self.root) for file in files}
        missing = names - self._names("ls-files", "-z", "--cached")
        return sorted(missing | names & self._names("ls-files", "-z", "--modified"))

    def ignored(self, names: Iterable[str]) -> bool:
        """Whether .gitignore has any of ``names``."""
        done = _git(self.root, "check-ignore", "-z", "--stdin", given="\0".join(names))
        return done.returncode == 0

    def _names(self, *arguments: str) -> set[str]:
        done = _git(self.root, *arguments)
        if done.returncode:
            raise UsageError(
                f"git {arguments[0]} fails in {self.root}: {_first_line(done.stderr)}", advice="see git status"
            )
        return set(done.stdout.split("\0")) - {""}


def repository_here() -> Repository:
    """The repository of the current folder. Raises DependencyError without git, UsageError where there is none."""
    if shutil.which("git") is None:
        raise DependencyError("git is not installed here", advice="install git: it says which files CI will have")
    done = _git(Path.cwd(), "rev-parse", "--show-toplevel")
    if done.returncode:
        raise UsageError(
            f"{Path.cwd()} is not in a Git repository: {_first_line(done.stderr)}",
            advice="go to the folder of the repository that CI is for, or make one with `git init`",
        )
    return Repository(Path(done.stdout.removesuffix("\n")).resolve())


def _git(folder: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments],
        cwd=folder,
        input=given,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
    )


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]

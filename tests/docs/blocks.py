"""The blocks of code in a page, and how each is run: skdeploy in this process, other shell by bash, Python by exec."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from skdeploy.__main__ import main

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK: Final = re.compile(r"^```(sh|console|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# A block that no test can run says why in its first line, where the reader sees it, and names one of these.
NEEDS: Final = {
    "a GPU": "skdeploy",
    "Docker": "docker",
    "a running Triton": r"--server",
    "TensorRT": r"trtexec|-lnvinfer",
    "g++, and the headers": r"g\+\+",
    "the network": r"pip install|hf://|make demo",
    "your training script": "loader",
    "other tools": r"yolo|trtexec|polygraphy|python",
}
REASON: Final = re.compile(rf"# needs ({'|'.join(map(re.escape, NEEDS))})\b")
SHELL: Final = re.compile(r"[|<>&;$`*?]")


@dataclass(frozen=True)
class Block:
    """A block of code: its language, its text, and the line of the page on which it begins."""

    language: str
    text: str
    line: int

    @property
    def needs(self) -> str | None:
        """Return what the block needs and a test does not have, or None."""
        found = REASON.match(self.text)
        return found[1] if found else None

    @property
    def commands(self) -> list[str]:
        """Return the commands: continuations joined, without comments, prompts and outputs."""
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [line for line in lines if line.strip() and not line.startswith("#")]


def blocks(text: str) -> list[Block]:
    return [Block(found[1], found[2], text.count("\n", 0, found.start()) + 1) for found in BLOCK.finditer(text)]


def run(block: Block, names: dict[str, Any]) -> list[str]:
    """Run a block in the current folder; return what each command printed. ``names``: the page's Python so far.

    Raises AssertionError with the output of what failed.
    """
    if block.language == "python":
        code = compile(block.text, f"line {block.line}", "exec")
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(io.StringIO()):
            exec(code, names)
        return [printed.getvalue()]
    if all(command.startswith("skdeploy ") and not SHELL.search(unquoted(command)) for command in block.commands):
        return [skdeploy(command) for command in block.commands]
    return [bash("\n".join(block.commands))]


def unquoted(command: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"|\s#.*", "", command)


def skdeploy(command: str) -> str:
    """Run one command in this process, as a shell would call it; return what it printed on stdout."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", shlex.split(command, comments=True))
        patch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as end:
            main()
    # The stand-in networks are untrained and their images few: a budget of accuracy is asked of them, and not met.
    accepted = (0, 10) if "--max-drop" in command else (0,)
    assert (end.value.code or 0) in accepted, f"{command}\n{out.getvalue()}{err.getvalue()}"
    return out.getvalue()


def bash(script: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "--noprofile", "--norc", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout

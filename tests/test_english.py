"""Words that a reader stumbles over are in no help, message or docstring of the package (CONTRIBUTING.md, "Plain English").

Help and messages are string constants, read by ``ast``; so nothing has to run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

PACKAGE: Final = Path(__file__).parents[1] / "skdeploy"
# What to write instead: "is not a"; "belongs to" or "requires"; "is reported"; the number; "if"; "your own".
AVOIDED: Final = re.compile(
    r"(?<!there )\bis no (?!longer\b|faster\b)|\bis of\b|\b(?:is|are) told\b|\bso many\b|\bas far as\b|\bof one's own\b"
)
RIDDLE: Final = re.compile(r"\s*What\b")  # the first word of a docstring: it names nothing


def test_help_messages_and_docstrings_use_plain_words() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {words}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, words in avoided(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('"""What a pass does."""', "What"),
        ('class A:\n    """What it is."""', "What"),
        ('raise ValueError(f"{path} is no bundle")', "is no "),
        ('Flag("Which is of --backend.")', "is of"),
        ('note(f"the rest " "is told below")', "is told"),
        ('"""Return it, as far as known."""', "as far as"),
        ('note("there is no GPU, and FP32 is no longer read")', None),
        ('TEXT = "What it is"', None),
    ],
)
def test_an_avoided_word_is_found(source: str, words: str | None) -> None:
    assert [found for _, found in avoided(source)] == ([words] if words else [])


def avoided(source: str) -> Iterator[tuple[int, str]]:
    """The line and the words of each use in a module's strings; an f-string is read with its values left out."""
    tree = ast.parse(source)
    scopes = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    documented = (node.body[0] for node in ast.walk(tree) if isinstance(node, scopes) and node.body)
    docstrings = {id(first.value) for first in documented if isinstance(first, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = " ".join(node.value.split()) + " "
            if id(node) in docstrings and RIDDLE.match(text):
                yield node.lineno, "What"
            for words in AVOIDED.findall(text):
                yield node.lineno, words

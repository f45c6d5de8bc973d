"""Each block of shell and Python in the documentation runs, in the order of its page, or says in its first line why it cannot.

The reader's folder has small networks under the names that the pages use. The README runs with the real ones too: slow.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import NEEDS, PAGES, ROOT, Block, blocks, run

# Their exports take longer than the rest of the pages together.
SLOW: tuple[str, ...] = ()


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def parameter(page: Path) -> Any:
    return pytest.param(page, id=named(page), marks=[pytest.mark.slow] if named(page) in SLOW else [])


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page.read_text(encoding="utf-8")) if block.needs is None]


@pytest.mark.parametrize("page", [parameter(page) for page in PAGES if runnable(page)])
def test_every_block_runs(page: Path, desk: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in runnable(page):
        try:
            run(block, names)
        except (AssertionError, Exception) as error:
            raise AssertionError(f"{named(page)}, line {block.line}: {error}") from error


def test_a_block_that_says_what_it_needs_does_need_it() -> None:
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8")):
            if block.needs is not None:
                body = block.text.partition("\n")[2]
                assert re.search(NEEDS[block.needs], body), f"{named(page)}, line {block.line}"


@pytest.mark.parametrize(
    "text",
    [
        "```sh\nskdeploy inspect build/absent\n```\n",
        "```sh\nskdeploy doctor\nfalse | true\n```\n",
        "```python\nimport skdeploy as sk\nsk.load_bundle('build/absent')\n```\n",
        "```console\n$ skdeploy doctor --jsn\nfine\n```\n",
    ],
)
def test_a_broken_block_fails(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(text)
    with pytest.raises((AssertionError, Exception)):
        run(block, {})

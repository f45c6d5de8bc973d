"""Text of the findings as markup of the page: commands as code, and lines that break between words only."""

from __future__ import annotations

import re
from html import escape
from typing import Final

from skdeploy.report.blocks import Trusted, visible

UNBROKEN: Final = (
    26  # characters, of the longest option; a telephone of 400 px has room for them in any of the page's fonts
)
# Where paths, modules, addresses and options' names may be broken, and figures may not.
SPLIT: Final = re.compile(r"(?<=[/_])(?=\w)|(?<=[.,=:])(?=[^\W\d])")


def prose(text: str) -> Trusted:
    """Escape the text, set what stands between backticks as code, and keep options and names whole."""
    parts = visible(text).split("`")
    if len(parts) % 2 == 0:  # a backtick without its partner is a character like others
        return Trusted(_words(visible(text)))
    return Trusted(
        "".join(f"<code>{_words(part)}</code>" if place % 2 else _words(part) for place, part in enumerate(parts))
    )


def _words(text: str) -> str:
    return "".join(_word(word) for word in re.split(r"(\s+)", text))


def _word(word: str) -> str:
    if re.match(r"\W*-", word) and len(word) <= UNBROKEN:  # an option: a browser breaks it at its hyphens
        return f'<span class="w">{escape(word)}</span>'
    return "<wbr>".join(map(escape, SPLIT.split(word)))

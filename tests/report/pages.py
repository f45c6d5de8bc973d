"""A report's page, taken apart for tests."""

from __future__ import annotations

from html.parser import HTMLParser

from skdeploy.bundle.folder import Bundle
from skdeploy.report.page import render_report


class Page(HTMLParser):
    """The elements of a page as (tag, attributes), its text and that of each section by its id, and inline blocks."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.text = ""
        self.blocks: dict[str, list[str]] = {"style": [], "script": []}
        self._inside: str | None = None
        self._section: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in self.blocks:
            self._inside = tag
            self.blocks[tag].append("")
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
            self.sections[self._section] = ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = None if tag == self._inside else self._inside
        if tag == "section":
            self._section = None

    def handle_data(self, data: str) -> None:
        if self._inside is not None:
            self.blocks[self._inside][-1] += data
        else:
            self.text += data
            if self._section is not None:
                self.sections[self._section] += data


def page(bundle: Bundle) -> Page:
    return Page(render_report(bundle))

"""docs/line.svg: the line as README's readers see it, on light pages and on dark ones."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from skdeploy.core.precision import PRECISIONS
from tests.report.contrast import contrast

DRAWING = Path(__file__).parents[2] / "docs/line.svg"
SVG = "{http://www.w3.org/2000/svg}"


def palettes() -> dict[str, dict[str, str]]:
    light, dark = re.findall(r":root \{([^}]*)\}", DRAWING.read_text(encoding="utf-8"))
    return {
        name: dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css)) for name, css in (("light", light), ("dark", dark))
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_its_text_can_be_read_in_both_schemes(scheme: str) -> None:
    colours = palettes()[scheme]
    assert set(colours) == set(palettes()["light"])
    # WCAG 2.2: text 4.5 (1.4.3, AA), parts of drawings 3 (1.4.11)
    for text, behind in (
        ("ink", "box"),
        ("soft", "box"),
        ("ink", "proof-box"),
        ("soft", "proof-box"),
        ("light", "end"),
    ):
        assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
    for line in ("line", "proof"):
        assert contrast(colours[line], colours["back"]) >= 3, line


def test_it_names_every_precision_that_an_export_can_make() -> None:
    texts = {text.text for text in ET.parse(DRAWING).getroot().iter(f"{SVG}text")}
    assert {precision.words for precision in PRECISIONS.values()} - {"FP32"} <= texts
    assert "torch, FP32" in texts


def test_its_text_fits_its_boxes() -> None:
    """By an average width of 0.58 of the height, more than that of any sans-serif font with these words."""
    root = ET.parse(DRAWING).getroot()
    boxes = [
        {n: float(r.attrib[n]) for n in ("x", "y", "width", "height")}
        for r in root.iter(f"{SVG}rect")
        if "x" in r.attrib
    ]
    for text in root.iter(f"{SVG}text"):
        x, y = float(text.attrib["x"]), float(text.attrib["y"])
        around = [b for b in boxes if b["x"] <= x <= b["x"] + b["width"] and b["y"] <= y <= b["y"] + b["height"]]
        size = 17 if "name" in text.attrib["class"] else 13
        assert len(text.text or "") * size * 0.58 <= min(b["width"] for b in around), text.text

"""The figure of ``skdeploy attention``: a file of its own, legible on paper, in grey and to the colour-blind."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest

from skdeploy.core.errors import UsageError
from skdeploy.report.attention import attention_drawings, figure_title
from skdeploy.report.figure import check_figure, figure_svg, write_figure
from skdeploy.report.plots import MARKERS, SMALL_MARKERS, STYLES, drawing_style
from tests.report.reported import attention

SVG = "{http://www.w3.org/2000/svg}"


def svg(units: int = 2) -> str:
    report = attention(units).model_copy(update={"dataset": "<squares> & $co"})
    return figure_svg(figure_title(report), attention_drawings(report))


def test_it_names_units_kernels_scales_and_precisions_as_text() -> None:
    texts = [element.text or "" for element in ET.fromstring(svg()).iter(f"{SVG}text")]
    said = "\n".join(texts)
    for words in (
        "SK_1 (stages.1)", "a(5x5) − a(3x3)", "change from FP32", "size of the central object", "1.5x", "FP32", "FP16",  # noqa: RUF001 - the minus of the figure
        "95 % interval", "channel, sorted by FP32 at 1x", "INT8, 2x", "128 images of <squares> & $co",
    ):  # fmt: skip
        assert words in said, words


def test_it_is_the_same_every_time_and_needs_nothing_but_itself(tmp_path: Path) -> None:
    report = attention()
    for name in ("a.svg", "b.svg"):
        write_figure(tmp_path / name, figure_title(report), attention_drawings(report))
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "var(" not in text  # Inkscape and librsvg know no variables
    assert "nan" not in text


def test_every_class_that_it_draws_with_has_a_rule() -> None:
    style = drawing_style()
    used = {name for names in re.findall(r'class="([^"]+)"', svg()) for name in names.split()}
    assert {name for name in used if f".{name}" not in style} <= {"key"}


@pytest.mark.parametrize("units", [1, 2, 3, 4, 7])
def test_nothing_lies_outside_or_on_another_drawing(units: int) -> None:
    root = ET.fromstring(svg(units))
    whole = (float(root.attrib["width"]), float(root.attrib["height"]))
    boxes = []
    for drawing in root.findall(f"{SVG}svg"):
        x, y, width, height = (float(drawing.attrib[name]) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + width <= whole[0]
        assert 0 <= y <= y + height <= whole[1]
        boxes.append((x, y, x + width, y + height))
    for index, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[index + 1 :]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_the_change_is_drawn_from_fp32_of_the_same_unit() -> None:
    """Every graph of these made-up figures has one curve; INT8's is moved at its second point only."""
    report = attention()
    moved = tuple(
        unit.model_copy(
            update={
                "curves": tuple(
                    curve.model_copy(update={"differences": (0.0, 0.07, 0.125)}) if curve.graph == "int8" else curve
                    for curve in unit.curves
                )
            }
        )
        for unit in report.units
    )
    _, changes, _ = attention_drawings(report.model_copy(update={"units": moved}))
    assert [entry.name for entry in changes.legend] == ["FP16", "INT8"]
    first, second = (
        [float(point.split(",")[1]) for point in re.split("[ML]", path)[1:]]
        for path in re.findall(r'class="s[12]"><path class="line" d="([^"]*)"', changes.panels[0])
    )
    assert len(set(first)) == 1
    assert second[0] == second[2] == first[0]
    assert second[1] < first[1]  # upwards


@pytest.mark.parametrize("name", ["a.png", "a.pdf", "a.gif", "a"])
def test_another_format_is_refused_with_the_way_to_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"as \.svg only") as error:
        check_figure(tmp_path / name)
    assert str(tmp_path / "a.svg") in error.value.advice


def test_series_differ_in_grey_dash_and_marker() -> None:
    def grey(colour: str) -> float:  # luma of ITU-R BT.601, as printers use
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    style = drawing_style()
    colours = re.findall(r"\.s\d \.line, \.s\d \.marker \{ stroke: (#[0-9a-f]{6})", style)
    assert len(colours) == STYLES
    greys = sorted(map(grey, colours[:3]))  # FP32, FP16, INT8
    assert min(b - a for a, b in pairwise(greys)) > 20  # steps of 8 % of white
    assert len(set(re.findall(r"\.s\d \.line \{ stroke-dasharray: ([\d ]+)", style))) == STYLES - 1
    assert len(set(MARKERS)) == len(set(SMALL_MARKERS)) == STYLES

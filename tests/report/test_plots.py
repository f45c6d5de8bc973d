"""Drawings and colours of the report."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import pairwise

import pytest

from skdeploy.report.page import TEMPLATES
from skdeploy.report.plots import Axis, Row, Series, line_chart, rows_chart
from tests.report.contrast import contrast


def palettes() -> Iterator[tuple[str, dict[str, str]]]:
    css = (TEMPLATES / "drawing.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\n *\}", css, re.DOTALL)
    )
    yield "light", light
    yield "dark", light | dark


@pytest.mark.parametrize(("scheme", "colours"), list(palettes()))
def test_text_and_lines_stand_out_in_light_and_dark(scheme: str, colours: dict[str, str]) -> None:
    # WCAG 2.2: text 4.5 (1.4.3, AA), parts of drawings 3 (1.4.11)
    for text in ("ink", "soft", "faint", "link", "good", "warn", "bad"):
        assert contrast(colours[text], colours["page"]) >= 4.5, (scheme, text)
    for tone in ("good", "warn", "bad"):
        assert contrast(colours[tone], colours[f"{tone}-back"]) >= 4.5, (scheme, tone)
        assert contrast(colours["ink"], colours[f"{tone}-back"]) >= 4.5, (scheme, tone)
    for series in ("s0", "s1", "s2", "s3", "s4", "fill"):
        assert contrast(colours[series], colours["page"]) >= 3, (scheme, series)


@pytest.mark.parametrize("values", [[0.0, 1.0], [-3.2, 0.07], [5.0], [0.0], [1e-7, 2e-7], [93.4, 96.1], [1e9, 2.0]])
def test_linear_axes_cover_their_values_with_evenly_spaced_round_ticks(values: list[float]) -> None:
    axis = Axis.linear(values, "x")
    assert axis.low <= min(values)
    assert max(values) <= axis.high
    ticks = axis.ticks(5)
    assert 2 <= len(ticks) <= 8
    steps = [b - a for (a, _), (b, _) in pairwise(ticks)]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert [float(text) for _, text in ticks] == pytest.approx([value for value, _ in ticks], rel=1e-6)
    assert [axis.place(axis.low), axis.place(axis.high)] == [0, 1]


@pytest.mark.parametrize("values", [[1.0, 1e6], [0.3, 7.0], [5.0], [2.0, 2.1], [1e-9, 1e9], [0.0, math.inf, 4.0]])
def test_logarithmic_axes_cover_their_values_and_place_ratios_evenly(values: list[float]) -> None:
    axis = Axis.logarithmic(values, "x")
    usable = [value for value in values if 0 < value < math.inf]
    assert axis.low <= min(usable) <= max(usable) <= axis.high
    middle = math.sqrt(axis.low * axis.high)
    assert axis.place(middle) == pytest.approx(0.5)
    assert 2 <= len(axis.ticks(6)) <= 10
    assert all(axis.low * 0.999 <= value <= axis.high * 1.001 for value, _ in axis.ticks(6))


def test_bars_are_as_long_as_their_values() -> None:
    rows = [Row("a", bar=(None, 10.0)), Row("b", bar=(None, 40.0))]
    svg = rows_chart("t", rows, Axis.linear([0.0, 40.0], "dB"), 760)
    short, long = (float(width) for width in re.findall(r'<rect class="bar"[^>]* width="([\d.]+)"', svg))
    assert long == pytest.approx(4 * short, rel=0.01)  # drawn to a tenth of a pixel


def test_a_value_that_is_none_breaks_the_line_and_has_no_marker() -> None:
    series = Series(0, [0.0, 1.0, 2.0, 3.0], [1.0, math.nan, 2.0, 3.0])
    svg = line_chart("t", [series], Axis(0, 3, "x"), Axis(0, 3, "y"), 300, 200)
    (path,) = re.findall(r'class="line" d="([^"]*)"', svg)
    assert (path.count("M"), path.count("L")) == (2, 1)
    assert svg.count("a3,3 0 1,0 6,0") == 3  # half of a circle each
    assert "nan" not in svg


def test_labels_of_drawings_are_escaped_and_shortened_from_the_front() -> None:
    svg = rows_chart("<t>", [Row("<b>" + "x" * 90 + ".end", bar=(None, 1.0))], Axis(0, 1, "<dB>"), 760)
    assert "<b>" not in svg
    assert "&lt;dB&gt;" in svg
    assert "…" in svg
    assert svg.count("xxx.end") == 2  # what is shown, and the whole name when pointed at


def test_ticks_have_the_digits_that_they_need_and_no_more() -> None:
    assert [text for _, text in Axis(0, 100, "x").ticks(4)] == ["0", "25", "50", "75", "100"]
    assert [text for _, text in Axis(0, 1, "x").ticks(4)] == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    assert [text for _, text in Axis(0, 10, "x").ticks(4)] == ["0.0", "2.5", "5.0", "7.5", "10.0"]

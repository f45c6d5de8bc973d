"""The figure: what it says, and what is refused before anything is measured."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

from skdeploy.attention.figure import STYLES, check_figure, write_figure
from skdeploy.attention.report import AttentionReport, MeasuredGraph, csv_text, findings
from skdeploy.core.errors import DependencyError, UsageError
from skdeploy.core.spec import Precision
from tests.attention.networks import half, subject, unit
from tests.attention.squares import SCALES, run


@pytest.fixture
def report() -> AttentionReport:
    found = run(subject("fp32", unit([-3, -1], [0.5, 0])), subject("fp16", half(unit([-3, -1], [0.5, 0]))))
    graphs = tuple(
        MeasuredGraph(name=p, bundle="b", artifact="model.onnx", precision=p, sha256="0" * 64)
        for p in (Precision.FP32, Precision.FP16)
    )
    return AttentionReport(
        model="by-hand", dataset="<squares> & $co", dataset_sha256="0" * 64, images=4, unreadable=(), enlargement="",
        interpolation="nearest", interpolated=1.0, scales=SCALES, sizes=(16, 24, 32), graphs=graphs, units=(found,),
    )  # fmt: skip


def test_the_svg_names_unit_kernels_scales_and_precisions_as_text(report: AttentionReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_figure(report, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    for words in (
        "SK_2_1 (stages.0.0)", "mean a(5x5)", "mean a(3x3)", "size of the central object", "1.5x", "FP32", "FP16",
        "95 % interval of the mean", "channel, sorted by FP32 at 1x", "FP16, 2x", "&lt;squares&gt; &amp; $co",
    ):  # fmt: skip
        assert words in text, words
    assert "http" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")  # names of formats only: nothing is loaded from elsewhere
    write_figure(report, tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "a.svg").read_bytes()


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_other_formats_follow_the_suffix(report: AttentionReport, tmp_path: Path, suffix: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    write_figure(report, tmp_path / f"a{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes().startswith(magic)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none of \.svg, \.png, \.pdf"):
        check_figure(tmp_path / "a.gif")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DependencyError) as error:
        check_figure(tmp_path / "a.svg")
    assert error.value.advice == 'install it with: pip install "skdeploy[report]"'


def test_precisions_differ_in_grey_dash_and_marker() -> None:
    def grey(colour: str) -> float:  # luma of ITU-R BT.601, as printers use
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    first = STYLES[:3]  # FP32, FP16, INT8
    greys = sorted(grey(style["color"]) for style in first)
    assert min(b - a for a, b in pairwise(greys)) > 20  # steps of 8 % of white
    assert (
        len({str(style["linestyle"]) for style in STYLES}) == len({style["marker"] for style in STYLES}) == len(STYLES)
    )


def test_the_csv_has_a_row_for_each_unit_graph_and_scale(report: AttentionReport) -> None:
    header, *rows = csv_text(report).splitlines()
    assert header.startswith(
        "model,unit,paper_name,branch,kernel,reference_kernel,graph,precision,scale,resized_to,images,"
    )
    assert len(rows) == 2 * len(SCALES)
    assert rows[0].startswith('by-hand,stages.0.0,SK_2_1,1,"5x5 (3x3, dilation 2)",3x3,fp32,fp32,1.0,16,4,')
    assert float(rows[2].split(",")[-2]) == report.units[0].curves[0].differences[2]


def test_the_findings_say_where_it_grows_and_that_fp16_agrees_and_that_images_were_blurred(
    report: AttentionReport,
) -> None:
    assert findings(report)[:2] == [
        "attention to the larger kernel grows with the object in 1 of 1: SK_2_1 (stages.0.0)",
        "fp16 says the same in 1 of 1",
    ]
    assert findings(report)[2].startswith("at 2x, 100% of the images have fewer pixels than are shown")
    sharp = report.model_copy(update={"interpolated": 0.0})
    assert len(findings(sharp)) == 2


def test_the_report_comes_back_from_json(report: AttentionReport) -> None:
    assert AttentionReport.model_validate_json(report.model_dump_json()) == report

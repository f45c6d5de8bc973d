"""What the experiment found, as rows, sentences and JSON."""

from __future__ import annotations

import pytest

from skdeploy.attention.report import AttentionReport, MeasuredGraph, csv_text, findings
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
        "FP16 agrees in 1 of 1",
    ]
    assert findings(report)[2].startswith("at 2x, 100% of the images are enlarged beyond their own pixels")
    sharp = report.model_copy(update={"interpolated": 0.0})
    assert len(findings(sharp)) == 2


def test_the_report_comes_back_from_json(report: AttentionReport) -> None:
    assert AttentionReport.model_validate_json(report.model_dump_json()) == report

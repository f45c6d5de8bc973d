"""Columns of a task's own figures, and rows of the outputs of a network that has several."""

from __future__ import annotations

from typing import Any

from skdeploy.backends.metrics import Errors, Metrics
from skdeploy.core.spec import Precision
from skdeploy.parity.limits import IMAGES
from skdeploy.parity.report import Comparison, ParityReport
from skdeploy.report.task_figures import FigureColumns, outputs_tables

ERRORS = {"max_abs_error": 0.1, "max_rel_error": 0.01, "min_cosine": 0.9, "min_sqnr_db": 40.0, "sqnr_db": 44.0}


def metrics(**more: Any) -> Metrics:
    return Metrics(images=3, **ERRORS, **more)


def compared(artifact: str, verdict: Any = "pass") -> Comparison:
    outputs = {name: Errors(**ERRORS) for name in ("high", "low")}
    found = metrics(outputs=outputs)
    return Comparison(artifact=artifact, backend="x", precision=Precision.FP16, verdict=verdict, metrics=found)


def report(*comparisons: Comparison) -> ParityReport:
    return ParityReport(reference="r", dataset="d", dataset_sha256="0", images=3, comparisons=comparisons)


def test_figures_with_limits_come_first_and_say_them() -> None:
    image = metrics(figures={"same_8bit": 0.5, "psnr_db": 51.234, "ssim": 0.99})
    columns = FigureColumns.of([metrics(), image])
    assert [head.label for head in columns.heads] == ["PSNR", "SSIM", "same 8-bit values"]
    assert columns.deciding == 2
    allowed = IMAGES.fill(Precision.FP16.tolerance, Precision.FP16)
    psnr, ssim, same = columns.cells(image, allowed)
    assert (psnr.text, psnr.note) == ("51.2 dB", "at least 50.0 dB")
    assert (ssim.text, ssim.note) == ("0.9900", "at least 0.9950")
    assert (same.text, same.note) == ("50.00%", "")
    assert [cell.text for cell in columns.cells(None, allowed)] == ["", "", ""]


def test_a_figure_of_another_package_has_a_column_too() -> None:
    columns = FigureColumns.of([metrics(figures={"degrees": 1.23456})])
    assert [head.label for head in columns.heads] == ["degrees"]
    assert columns.deciding == 0
    assert columns.cells(metrics(figures={"degrees": 1.23456}), Precision.FP16.tolerance)[0].text == "1.235"


def test_outputs_are_listed_of_what_is_deployed_and_what_failed() -> None:
    found = report(compared("model.read.onnx", "fail"), compared("model.onnx"), compared("model.fp16.onnx"))
    (table,) = outputs_tables(found)
    assert [(row[0].text, row[1].text) for row in table.rows] == [
        ("high", "model.read.onnx"),
        ("low", "model.read.onnx"),
        ("high", "model.fp16.onnx"),
        ("low", "model.fp16.onnx"),
    ]


def test_one_output_needs_no_table() -> None:
    one = Comparison(artifact="a.onnx", backend="x", precision=Precision.FP32, verdict="pass", metrics=metrics())
    assert list(outputs_tables(report(one))) == []

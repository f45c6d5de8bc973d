"""INT8 of networks over sequences and volumes, through the line; and what it makes, given back as a file with its own Q/DQ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from skdeploy.bundle import contents
from skdeploy.bundle.station_facts import Int8Facts, TrainedInt8Facts
from skdeploy.core.precision import Precision
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.export import Export, export
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions
from skdeploy.passes.trained import scales_in
from tests.graphs import unets


def exported(graph: Path, folder: Path, samples: Path, asked: Int8Options) -> Export:
    return export(
        ExportOptions(
            str(graph),
            precision=Precision.INT8,
            output=folder,
            target="onnx",
            images=samples,
            num_images=8,
            lowering={"int8": asked},
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("dims", [1, 3])
def test_a_u_over_arrays_is_quantized_and_its_own_file_is_taken_as_it_is(dims: int, tmp_path: Path) -> None:
    graph, samples = tmp_path / "u.onnx", tmp_path / "samples.npz"
    ir.save(unets.graph("transposed", "concat", dims), graph)
    np.savez(samples, input=unets.noise(dims, 24, seed=9))
    asked = Int8Options(calibration=CalibrationOptions(images=samples), fallback="fp32")
    done = exported(graph, tmp_path / "first", samples, asked)
    assert done.parity.verdict == "pass"
    facts = done.bundle.artifact(contents.INT8).facts_as(Int8Facts)
    assert (facts.int8_macs, facts.kept) == (1.0, {})

    file = done.bundle.folder / contents.INT8
    again = exported(file, tmp_path / "again", samples, Int8Options(fallback="fp32"))
    made = again.bundle.artifact(contents.INT8)
    assert made.facts_as(TrainedInt8Facts).int8_macs == 1.0
    assert scales_in(ir.load(again.bundle.folder / contents.INT8)) == scales_in(ir.load(file))
    (row,) = (each for each in again.parity.comparisons if each.artifact == contents.INT8)
    assert row.metrics.max_abs_error == 0  # the same integers, and FP32 in the same order beside them

"""A backbone of large selective kernels through the line: two maps out, the selection of places beside INT8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from skdeploy.bundle import contents
from skdeploy.bundle.station_facts import EngineFacts, Int8Facts
from skdeploy.core.precision import Precision
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.export import Export, export
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions
from skdeploy.line.verification import VerifyOptions, verify
from skdeploy.report.int8 import int8_text
from skdeploy.report.page import render_report
from tests.graphs import unets
from tests.networks import lsk
from tests.quant.noise import pixels


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lsk") / "lsk.onnx"
    example = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    ir.save(unets.exported(lsk.backbone(), example, lsk.OUTPUTS), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, pixels(32, height=40, width=40))
    return path


def exported(backbone: Path, images: Path, folder: Path, precision: Precision, target: str) -> Export:
    lowering = (
        {"int8": Int8Options(calibration=CalibrationOptions(images=images))} if precision is Precision.INT8 else {}
    )
    return export(
        ExportOptions(
            str(backbone),
            precision=precision,
            output=folder,
            target=target,
            images=images,
            num_images=8,
            lowering=lowering,
        )
    )


def test_both_maps_are_proven_and_the_selection_stays_beside_int8(backbone: Path, images: Path, tmp_path: Path) -> None:
    done = exported(backbone, images, tmp_path / "bundle", Precision.INT8, "onnx")
    assert done.bundle.manifest.model.task == "features"
    made = done.bundle.artifact(contents.INT8)
    assert [output.name for output in made.outputs] == ["fine", "coarse"]
    facts = made.facts_as(Int8Facts)
    kept = {name: why for name, why in facts.kept.items() if "channels a group" not in why}
    assert kept == {f"blocks.{block}.select.decide/Conv": "part of a gate" for block in (0, 1)}
    assert len(facts.kept) == 2 + 6  # and the depthwise ones
    assert "(part of a gate)" in int8_text(made)
    (row,) = (each for each in done.parity.comparisons if each.artifact == contents.INT8)
    assert row.verdict == "pass"
    assert set(row.metrics.outputs) == {"fine", "coarse"}
    # Noise of 8 bits through two blocks leaves 30 dB; a scale of another tensor in one place would leave a few.
    assert row.metrics.min_sqnr_db > 20


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
def test_it_is_built_verified_and_reported(precision: Precision, backbone: Path, images: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")
    done = exported(backbone, images, tmp_path / "bundle", precision, "tensorrt_rtx")
    (engine,) = (each for each in done.bundle.manifest.artifacts if each.format == "engine")
    assert engine.facts_as(EngineFacts).plan_bytes > 0
    assert done.parity.verdict == "pass"
    assert verify(done.bundle.folder, VerifyOptions()).report.verdict == "pass"
    page = render_report(done.bundle)
    assert all(name in page for name in lsk.OUTPUTS)

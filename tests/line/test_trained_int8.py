"""A file that carries its own Q/DQ, by ONNX Runtime's quantizer, through the line: its scales, its parity, its errors."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from skdeploy.bench.measure import BenchOptions, bench
from skdeploy.bundle import contents
from skdeploy.bundle.station_facts import TrainedInt8Facts
from skdeploy.core.errors import CalibrationError, ExportError, UsageError
from skdeploy.core.precision import Precision
from skdeploy.core.progress import Silent
from skdeploy.engines.parsing import parser_refusal
from skdeploy.ir.large import save_model
from skdeploy.ir.qdq import int8_layers
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.export import calibrate, export
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions
from skdeploy.passes.foreign import read_foreign
from skdeploy.report.int8 import int8_text
from skdeploy.report.page import render_report
from tests import threads
from tests.graphs import foreign

UNSIGNED = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8}


class Noise(CalibrationDataReader):
    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.batches: Iterator[dict[str, np.ndarray]] = iter(
            [{"image": generator.standard_normal((2, 3, 12, 10)).astype(np.float32)} for _ in range(4)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The selective kernel network before it is quantized."""
    folder = tmp_path_factory.mktemp("single")
    with threads.single():
        torch.manual_seed(0)
        foreign.export(foreign.live(foreign.Classifier(foreign.PORTS["timm"]())), folder / "float.onnx")
    return folder / "float.onnx"


@pytest.fixture(scope="module")
def trained(single: Path) -> Path:
    """A selective kernel network as its author's tools leave it: symmetric int8, scales a channel, biases as int32."""
    logging.disable()
    quantize_static(
        single,
        single.parent / "trained.onnx",
        Noise(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    logging.disable(logging.NOTSET)
    return single.parent / "trained.onnx"


def scales(path: Path) -> set[bytes]:
    """The scales that Q/DQ nodes read, as they lie in the file; those of biases are no longer needed."""
    proto = onnx.load(path)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    read = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    biased = {node.output[0] for node in read if constants.get(node.input[0], np.int8(0)).dtype == np.int32}
    return {constants[node.input[1]].astype(np.float32).tobytes() for node in read if node.output[0] not in biased}


@pytest.mark.parametrize("fallback", ["fp16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_its_own_scales_are_deployed_to_the_last_bit_and_proven(fallback: str, trained: Path, tmp_path: Path) -> None:
    options = ExportOptions(
        str(trained),
        precision=Precision.INT8,
        output=tmp_path / "bundle",
        target="onnx",
        assume_imagenet=True,
        num_images=8,
        lowering={"int8": Int8Options(fallback=fallback)},
    )
    done = export(options)
    made = done.bundle.artifact(contents.INT8)
    assert scales(done.bundle.folder / contents.INT8) == scales(trained)
    facts = made.facts_as(TrainedInt8Facts)
    assert len(facts.int8_weights) == 7  # all layers that the file has, its gate's among them
    assert facts.kept == {}
    assert facts.int8_macs == 1.0
    assert int8_text(made).startswith("100.0 % of the computation is INT8")
    assert 10 < facts.sqnr_to_float_db < 40  # 25 tensors of 8 bits, among them those of the gate, by minmax
    assert bool(facts.fp16_tensors) == (fallback == "fp16")
    (row,) = (each for each in done.parity.comparisons if each.artifact == contents.INT8)
    assert row.verdict == "pass"
    # With FP32 beside it nothing is rounded that the file does not round.
    assert row.metrics.min_sqnr_db > (30 if fallback == "fp16" else 100)
    measured = bench(done.bundle.folder, BenchOptions(seconds=0.05), Silent())
    assert [each.artifact for each in measured.measured] == [contents.INT8]  # model.onnx has Q/DQ: it is no FP32 graph
    assert measured.comparisons == ()
    assert any("the file's own Q/DQ" in note for note in measured.notes)
    words = {artifact.path: artifact.words for artifact in done.bundle.manifest.artifacts}
    assert words[contents.READ] == words[contents.MODEL] == "FP32+Q/DQ"  # they round to INT8: no FP32 graphs
    assert words[contents.INT8] == "INT8"
    assert "own first FP32+Q/DQ graph" in done.parity.reference
    page = render_report(done.bundle)
    assert "The scales are those of the file, from training" in page
    assert any("own scales, kept to the last bit" in note for note in done.bundle.manifest.notes)


@pytest.mark.parametrize(
    ("precision", "words"),
    [(Precision.FP16, "--fp16 would keep rounding to INT8"), (Precision.FP32, "an export to FP32")],
)
def test_another_precision_is_refused_with_what_to_do(precision: Precision, words: str, trained: Path) -> None:
    with pytest.raises(UsageError, match=words) as refusal:
        export(ExportOptions(str(trained), precision=precision, target="onnx", assume_imagenet=True))
    assert "--int8" in refusal.value.advice
    assert "without Q/DQ" in refusal.value.advice


@pytest.mark.parametrize(
    ("asked", "flag"),
    [
        (Int8Options(keep=("stem",)), "--int8-keep"),
        (Int8Options(keep_grouped=True), "--int8-keep-grouped"),
        (Int8Options(calibration=CalibrationOptions(allow_random=True)), "--allow-random-calib"),
    ],
)
def test_options_that_would_make_other_scales_are_refused(asked: Int8Options, flag: str, trained: Path) -> None:
    with pytest.raises(UsageError, match=f"{flag} does not go with"):
        export(
            ExportOptions(
                str(trained), precision=Precision.INT8, target="onnx", assume_imagenet=True, lowering={"int8": asked}
            )
        )


@pytest.mark.parametrize(
    "wrote",
    [
        lambda *files: quantize_static(*files, Noise(), quant_format=QuantFormat.QOperator),
        pytest.param(lambda *files: quantize_static(*files, Noise(), **UNSIGNED), marks=pytest.mark.slow),
        pytest.param(
            lambda *files: quantize_static(*files, Noise(), activation_type=QuantType.QInt16), marks=pytest.mark.slow
        ),
        pytest.param(lambda *files: quantize_dynamic(*files), marks=pytest.mark.slow),
    ],
    ids=["operators", "uint8", "int16", "dynamic"],
)
def test_what_onnx_runtimes_quantizer_writes_is_refused_with_the_call_that_makes_a_legal_file(
    wrote: Callable[[Path, Path], None], single: Path, tmp_path: Path
) -> None:
    logging.disable()
    wrote(single, tmp_path / "other.onnx")
    with pytest.raises(ExportError) as refusal:
        read_foreign(tmp_path / "other.onnx")
    (call,) = re.findall(r"(quantize_static\(\.\.\..*?}\))", refusal.value.advice or "")
    names = {"quantize_static": quantize_static, "QuantType": QuantType, "QuantFormat": QuantFormat}
    eval(
        call.replace("...", "before, after, reader"),
        names | {"before": single, "after": tmp_path / "legal.onnx", "reader": Noise()},
    )  # our own words, which the user will type
    logging.disable(logging.NOTSET)
    made = read_foreign(tmp_path / "legal.onnx")
    assert len(int8_layers(made)) == 7
    save_model(made, tmp_path / "read.onnx")
    assert parser_refusal(tmp_path / "read.onnx") == ""  # TensorRT-RTX takes it


def test_what_onnx_runtimes_quantizer_writes_by_default_is_taken(single: Path, tmp_path: Path) -> None:
    """Its activations have zero points, which are shifted away."""
    logging.disable()
    quantize_static(single, tmp_path / "other.onnx", Noise())
    logging.disable(logging.NOTSET)
    made = read_foreign(tmp_path / "other.onnx")
    assert len(int8_layers(made)) == 7
    save_model(made, tmp_path / "read.onnx")
    assert parser_refusal(tmp_path / "read.onnx") == ""


def test_it_is_not_calibrated(trained: Path, tmp_path: Path) -> None:
    asked = CalibrationOptions(allow_random=True, number=2)
    with pytest.raises(CalibrationError, match="quantized already"):
        calibrate(ExportOptions(str(trained), assume_imagenet=True), asked, tmp_path / "ranges.json")
    assert not (tmp_path / "ranges.json").exists()


def test_a_file_without_scales_still_needs_images(trained: Path) -> None:
    with pytest.raises(UsageError, match="INT8 needs images or samples to calibrate on"):
        export(ExportOptions(str(trained.parent / "float.onnx"), precision=Precision.INT8, target="onnx"))

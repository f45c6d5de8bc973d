"""The legacy calibration cache against files that TensorRT wrote, and what the format cannot hold.

Published examples:

* README: NVIDIA's own description, samples/sampleINT8/README.md of
  https://github.com/NVIDIA/TensorRT/tree/40b47542a7aa51329ab34553e2483fb951a5d0f4
* ULTRALYTICS: a file of TensorRT 8.6.1, https://github.com/ultralytics/ultralytics/issues/14121
* XAVIER: a file headed for TensorRT 8.2.3, https://github.com/NVIDIA/TensorRT/issues/2036
"""

from __future__ import annotations

import math
import re

import numpy as np
import onnx_ir as ir
import pytest

from skdeploy.core.errors import CalibrationError, UsageError
from skdeploy.quant.legacy_cache import read_legacy_cache, spread_scales, write_legacy_cache

README = """\
TRT-7000-EntropyCalibration2
data: 3c008912
conv1: 3c88edfc
pool1: 3c88edfc
conv2: 3ddc858b
pool2: 3ddc858b
ip1: 3db6bd6e
ip2: 3e691968
prob: 3c010a14
"""
ULTRALYTICS = """\
TRT-8601-EntropyCalibration2
images: 3b66eddc
168: 3dc6cf6e
169: 3c010a14
170: 3dbcb6fb
171: 3e890b78
"""
XAVIER = """\
TRT-8203-EntropyCalibration2
167: 3c009976
168: 3e5d05cc
169: 3c00f9f4
"""


@pytest.mark.parametrize(("text", "version"), [(ULTRALYTICS, "8.6.1"), (XAVIER, "8.2.3")])
def test_a_published_cache_is_written_again_byte_for_byte(text: str, version: str) -> None:
    assert write_legacy_cache(read_legacy_cache(text), version) == text


def test_the_numbers_of_nvidias_description_are_scales() -> None:
    scales = read_legacy_cache(README)
    assert list(scales) == ["data", "conv1", "pool1", "conv2", "pool2", "ip1", "ip2", "prob"]
    # A softmax reaches 1, and the sample scales MNIST's pixels to 0..1: 127 scales are about 1. Entropy calibration may clip
    # the largest values, hence 0.5 %. Had the file held thresholds, or little-endian numbers, they would be nowhere near.
    for name in ("data", "prob"):
        assert 127 * scales[name] == pytest.approx(1, rel=5e-3)
    assert scales["conv1"] == scales["pool1"]  # the largest value survives max pooling


def test_the_hexadecimal_is_the_big_endian_float32() -> None:
    # https://github.com/microsoft/onnxruntime, tensorrt_execution_provider_utils.h: 2.008338 and 4000889d are the same number.
    assert read_legacy_cache("TRT-7103-EntropyCalibration2\ndata_0: 4000889d\n")["data_0"] == pytest.approx(
        2.008338, abs=5e-7
    )
    values = np.random.default_rng(0).lognormal(sigma=8, size=200)
    lines = write_legacy_cache({f"t{i}": float(v) for i, v in enumerate(values)}, "10.3.0").splitlines()[1:]
    assert [line.split(": ")[1] for line in lines] == [
        f"{bits:08x}" for bits in values.astype(np.float32).view(np.uint32)
    ]


@pytest.mark.parametrize(
    ("version", "number"),
    [
        ("8.5.3", 8503),
        ("8.5.2.2", 8502),
        ("8.5.10", 8510),
        ("8.6.1", 8601),  # published: ULTRALYTICS
        ("10.3.0", 100300),  # published: cal_trt.bin of DeepStream's Primary_Detector
        ("10.3.0.30", 100300),
        ("10.13.2", 101302),
        ("10.16.2.10", 101602),  # what trtexec 10.16.2 calls itself: v101602
    ],
)
def test_the_first_line_has_nvidias_version_number(version: str, number: int) -> None:
    assert write_legacy_cache({"x": 1.0}, version).startswith(f"TRT-{number}-EntropyCalibration2\n")


@pytest.mark.parametrize("version", ["7.2.3", "9.2.0", "11.0.0", "11.4.0.106"])
def test_a_tensorrt_that_reads_no_cache_is_refused(version: str) -> None:
    with pytest.raises(UsageError, match=f"no calibration cache for TensorRT {re.escape(version)}"):
        write_legacy_cache({"x": 1.0}, version)


@pytest.mark.parametrize("version", ["", "10", "10.3", "8503", "v8.5.3", "8.5.3\n", "8.5.300"])
def test_a_version_of_another_form_is_refused(version: str) -> None:
    with pytest.raises(UsageError, match="is not a TensorRT version"):
        write_legacy_cache({"x": 1.0}, version)


def test_names_that_tensorrt_itself_writes_survive() -> None:
    scales = {"(Unnamed Layer* 8) [Constant]_output": 0.5, "input_1:0": 0.25, "stages.0.0.sk/Add_2": 1.5}
    assert read_legacy_cache(write_legacy_cache(scales, "8.5.3")) == scales


@pytest.mark.parametrize("name", ["", " x", "x ", "a: b", "a\nb", "a\rb", "a\tb", "é", "a\x85b"])
def test_a_name_that_breaks_the_format_is_refused(name: str) -> None:
    with pytest.raises(CalibrationError, match="a TensorRT calibration cache cannot hold") as error:
        write_legacy_cache({"fine": 1.0, name: 1.0}, "8.5.3")
    assert repr(name) in error.value.message


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 1e39, 1e-39])
def test_a_scale_that_is_no_positive_float32_names_its_tensor(scale: float) -> None:
    with pytest.raises(CalibrationError, match="scale of the tensor 'x'"):
        write_legacy_cache({"x": scale}, "8.5.3")


def test_the_smallest_and_largest_scales_of_float32_are_held() -> None:
    limits = np.finfo(np.float32)
    text = write_legacy_cache({"low": float(limits.tiny), "high": float(limits.max)}, "8.5.3")
    assert text.splitlines()[1:] == ["low: 00800000", "high: 7f7fffff"]


def test_no_ranges_make_no_cache() -> None:
    with pytest.raises(CalibrationError, match="no ranges"):
        write_legacy_cache({}, "8.5.3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line is ''"),
        ("data: 3c008912\n", "not a TensorRT calibration cache"),
        (README + "x 3c008912\n", "line 10"),
        (README + "x: 3c0089123\n", "line 10"),
        (README + "x: 0.5\n", "line 10"),
        (README + "\n", "line 10"),
        (README + "data: 3c008912\n", "a second scale"),
        (README + "x: 7fc00000\n", "the scale nan"),
        (README + "x: bf800000\n", r"the scale -1\.0"),
    ],
)
def test_a_broken_cache_is_refused_with_the_line(text: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        read_legacy_cache(text)


def test_digits_that_another_tool_left_out_are_leading_zeros() -> None:
    assert read_legacy_cache("TRT-8503-EntropyCalibration2\nx: 800000\n")["x"] == 2.0**-126
    assert read_legacy_cache("TRT-8503-MinMaxCalibration\nx: 0\n")["x"] == 0.0


def test_a_scale_goes_to_what_is_fused_with_its_tensor() -> None:
    """conv -> relu -> max pool, and conv + conv -> relu: TensorRT makes one kernel of each, so they have one scale."""
    from onnx import parser

    text = """
        <ir_version: 9, opset_import: ["" : 19]>
        g (float[1,2,4,4] x, float[2,2,1,1] w) => (float[1,2,3,3] z) {
            a = Conv (x, w)
            b = Relu (a)
            p = MaxPool <kernel_shape = [2, 2]> (b)
            c = Conv (p, w)
            d = Conv (p, w)
            e = Add (c, d)
            z = Relu (e)
            s = Sigmoid (z)
        }
    """
    model = ir.from_proto(parser.parse_model(text))
    assert spread_scales(model, {"x": 1.0, "p": 2.0, "d": 3.0, "z": 4.0}) == {
        "x": 1.0, "a": 2.0, "b": 2.0, "p": 2.0, "c": 4.0, "d": 3.0, "e": 4.0, "z": 4.0,
    }  # fmt: skip

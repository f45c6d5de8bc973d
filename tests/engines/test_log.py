from __future__ import annotations

from typing import cast

import pytest

from skdeploy.engines._api import Compiler
from skdeploy.engines._log import Log, capture, changes_types

SEEN_UINT8 = (
    "onnxOpImporters.cpp:1980: TensorRT supports QuantizeLinear/DequantizeLinear with UINT8 zero_point only on DLA "
    "(version >= 3.16). Defaulting to INT8 instead. To import as UINT8, set the kIMPORT_UINT8_QUANTIZATION flag."
)
SEEN_MIXED = (
    "IElementWiseLayer with inputs x and ONNXTRT_Broadcast_output: first input has type Float but second input has type "
    "Half."
)
SEEN_SCALES = " (foreignNode) Converting conv {} scales to fp32."  # from the builder, with its space
OLD_INT64 = (
    "onnx2trt_utils.cpp:374: Your ONNX model has been generated with INT64 weights, while TensorRT does not natively "
    "support INT64. Attempting to cast down to INT32."
)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (SEEN_UINT8, True),
        (SEEN_MIXED, True),
        (OLD_INT64, True),
        ("One or more weights outside the range of INT32 was clamped", True),
        ("Weights [name=conv] had the following issues when converted to FP16: Subnormal FP16 values detected.", True),
        ("Missing scale and zero-point for tensor relu_3, expect fall back to non-int8 implementation", True),
        ("getHardwareCompatibilityLevel() is unsupported in TensorRT-RTX.", False),  # a change word, no type
        ("Detected layernorm nodes in FP16", False),  # a type, no change
        ("CUDA lazy loading is not enabled. Enabling it can significantly reduce device memory usage.", False),
        ("Using an engine plan file across different models of devices is not recommended.", False),
        ("Skipping tactic 0x12 due to insufficient memory on requested size of 4096", False),
        ("Profile kOPT values are not self-consistent", False),
    ],
)
def test_which_warnings_change_a_type(message: str, changes: bool) -> None:
    assert changes_types(message) == changes


@pytest.mark.parametrize("what", ["activation", "weight"])
def test_scales_that_become_float32_change_no_type_and_are_kept(what: str) -> None:
    log = Log()
    log.add("WARNING", SEEN_SCALES.format(what))
    assert log.type_warnings() == []
    assert [warning.text for warning in log.warnings] == [SEEN_SCALES.format(what)]


@pytest.mark.parametrize(
    "message",
    [
        SEEN_SCALES.format("activation").replace("fp32", "fp16"),  # loses digits
        SEEN_SCALES.format("weight").replace("fp32", "int8"),
        SEEN_SCALES.format("weight").replace(" scales", "s"),  # the tensor itself
        SEEN_SCALES.format("bias"),  # not seen: what it would mean is not known
        SEEN_SCALES.format("activation").replace("(foreignNode) ", ""),
        SEEN_SCALES.format("activation").replace("conv", "matmul"),
        SEEN_SCALES.format("activation") + " Clamped to the range of fp32.",
        "Node x: " + SEEN_SCALES.format("activation"),
        SEEN_SCALES.format("activation") + SEEN_SCALES.format("weight").replace("fp32", "fp16"),
    ],
)
def test_nothing_near_it_passes(message: str) -> None:
    assert changes_types(message)


def test_warnings_carry_the_node_that_was_being_parsed() -> None:
    log = Log()
    log.add("VERBOSE", "Parsing node: stages.0/conv [Conv]")
    log.add("WARNING", SEEN_UINT8)
    log.add("WARNING", SEEN_UINT8)
    log.add("VERBOSE", "Parsing node: cast to int8 instead [Cast]")  # a name is not what makes a warning about types
    log.add("WARNING", "something else")
    log.parsed()
    log.add("WARNING", "something else")
    assert log.type_warnings() == [f"node stages.0/conv (Conv): {SEEN_UINT8}"]
    assert str(log.warnings[-1]) == "something else"


def test_largest_memory_total_counts() -> None:
    log = Log()
    for number in (100, 300, 200):
        log.add("INFO", f"Total Activation Memory: {number} bytes")
    log.add("INFO", "Total Weights Memory: 7 bytes")
    log.add("INFO", "Total Host Persistent Memory: 80 bytes")
    assert log.memory_bytes == {"activation": 300, "weights": 7}


def test_errors_are_told_once_and_without_the_drivers_echo() -> None:
    log = Log()
    log.add("ERROR", "out of registers")
    log.add("ERROR", "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35)")
    log.add("ERROR", "out of registers")
    assert log.reasons() == "out of registers"
    assert Log().reasons() == "it gave no reason"


def test_module_has_one_logger_and_each_job_its_messages() -> None:
    trt = cast(Compiler, pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]"))
    with capture(trt) as (logger, first):
        trt.OnnxParser(trt.Builder(logger).create_network(1 << 0), logger).parse_from_file("/absent.onnx")
    with capture(trt) as (same, second):
        pass
    assert same is logger
    assert "cannot be found" in first.reasons()
    assert second.errors == []


def test_a_profile_that_cannot_be_run_is_told_once_and_without_the_compilers_own_code() -> None:
    log = Log()
    seen = "Profile kMAX values are not self-consistent. a/Conv: tensor volume exceeds 1099511627776 Condition '<' violated"
    for text in (seen, "CUDA lazy loading is not enabled.", seen):
        log.add("WARNING", text)
    assert log.profile_warnings() == [
        "Profile kMAX values are not self-consistent. a/Conv: tensor volume exceeds 1099511627776"
    ]

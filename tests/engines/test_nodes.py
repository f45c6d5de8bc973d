"""From a compiler's message to the user's modules. The messages are TensorRT-RTX 1.7.1's and TensorRT 10.3's own."""

from __future__ import annotations

import pytest

from skdeploy.engines._log import Log
from skdeploy.engines._nodes import nodes_in, reason_with_nodes

NODES = {
    "stem.conv/Conv": "stem.conv",
    "stages.0.0.reduce/Conv": "stages.0.0.reduce",
    "stages.0.0.reduce/Conv_2": "stages.0.0.reduce",
    "stages.0.0/Add": "stages.0.0",
    "classifier/Gemm": "classifier",
    "node_Conv_1": "",
    "node_Conv_12": "",
}
TURING = (
    "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check_turing_op_compatibility] Cannot compile "
    "operation 'classifier/Gemm' for Turing (SM75): FP32 GEMM is not supported. In compileGraph at "
    "/_src/optimizer/myelin/codeGenerator.cpp:2012)"
)
FUSED = (
    "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any implementation for node "
    "stem.conv/Conv + stages.0.0/Add.)"
)
FOREIGN = (
    "[optimizer.cpp::computeCosts::4142] Error Code 10: Internal Error (Could not find any implementation for node "
    "{ForeignNode[stages.0.0.reduce/Conv...classifier/Gemm]}.)"
)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (TURING, ("classifier/Gemm",)),
        (FUSED, ("stem.conv/Conv", "stages.0.0/Add")),
        (FOREIGN, ("stages.0.0.reduce/Conv", "classifier/Gemm")),
        ("for node node_Conv_12.", ("node_Conv_12",)),
        ("for node stages.0.0.reduce/Conv_2", ("stages.0.0.reduce/Conv_2",)),
        ("out of memory", ()),
    ],
)
def test_nodes_are_found_whole(message: str, expected: tuple[str, ...]) -> None:
    assert nodes_in(message, NODES) == expected


def test_a_reason_names_modules_and_no_source_of_nvidias() -> None:
    assert reason_with_nodes(TURING, NODES) == (
        "Myelin: Cannot compile operation 'classifier/Gemm' for Turing (SM75): FP32 GEMM is not supported (in classifier)"
    )
    assert reason_with_nodes(FOREIGN, NODES) == (
        "Internal Error: Could not find any implementation for node {ForeignNode[stages.0.0.reduce/Conv...classifier/Gemm]} "
        "(in stages.0.0.reduce, classifier)"
    )
    assert reason_with_nodes("node_Conv_1 failed", NODES) == "node_Conv_1 failed (in node_Conv_1)"
    assert reason_with_nodes("no GPU here", NODES) == "no GPU here"


def test_many_modules_are_counted() -> None:
    nodes = {f"layer{index}/Conv": f"layer{index}" for index in range(7)}
    assert reason_with_nodes(" + ".join(nodes), nodes).endswith(
        "(in layer0, layer1, layer2, layer3, layer4 and 2 more)"
    )


def test_what_the_error_recorder_gets_is_an_error_of_the_log_once() -> None:
    log = Log()
    log.record("UNSPECIFIED_ERROR", TURING)
    log.add("ERROR", TURING)
    log.record("UNSPECIFIED_ERROR", "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35)")
    assert log.reasons(NODES).count("Turing") == 1
    assert "cudaError" not in log.reasons(NODES)
    assert [error.code for error in log.recorded] == ["UNSPECIFIED_ERROR"] * 2

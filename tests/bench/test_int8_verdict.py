"""Does INT8 pay: what is compared with what, in words, for every way in which the question can be answered or left open."""

from __future__ import annotations

import pytest

from skdeploy.bench.int8_verdict import int8_sentence
from skdeploy.bench.statistics import Ratio, inverted
from skdeploy.core.spec import Precision

HALF = Ratio(ratio=0.5, low=0.4, high=0.6, pairs=9, verdict="faster")
SAME = Ratio(ratio=1.0, low=0.9, high=1.1, pairs=9, verdict="no difference")
TWICE = Ratio(ratio=2.0, low=1.6, high=2.5, pairs=9, verdict="slower")


def sentence(ratio: Ratio, precision: Precision = Precision.FP16, backend: str = "tensorrt", emulated: str = "") -> str:
    return int8_sentence(
        ratio, int8="a.int8", other="b/other", precision=precision, backend=backend, batch=8, emulated=emulated
    )


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (HALF, "INT8 pays compared with FP16 on tensorrt, batch 8: a.int8 is 2.00 times as fast as b/other"),
        (
            TWICE,
            "INT8 does not pay compared with FP16 on tensorrt, batch 8: a.int8 takes 2.00 times as long as b/other",
        ),
        (
            SAME,
            "INT8 does not pay compared with FP16 on tensorrt, batch 8: no significant difference between a.int8 and b/other",
        ),
    ],
)
def test_it_follows_the_verdict_and_names_both(ratio: Ratio, words: str) -> None:
    said = sentence(ratio)
    assert said.startswith(words)
    assert f"95 % interval {ratio.low:.3f} to {ratio.high:.3f}" in said
    assert "--against" not in said  # the question is answered


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx", "onnxruntime-tensorrt", "onnxruntime-cuda"])
def test_faster_than_fp32_leaves_the_question_open_where_fp16_is_fast_too(backend: str) -> None:
    said = sentence(HALF, Precision.FP32, backend)
    assert said.startswith(f"INT8 pays compared with FP32 on {backend}")
    assert said.endswith("give an FP16 bundle as --against")
    assert "FP16" not in sentence(HALF, Precision.FP32, "onnxruntime")  # the CPU computes FP16 as FP32


@pytest.mark.parametrize("ratio", [HALF, SAME, TWICE])
def test_nothing_is_said_of_int8_where_no_int8_kernel_ran(ratio: Ratio) -> None:
    said = sentence(ratio, emulated="for a reason")
    assert said.startswith(
        "this does not show whether INT8 pays on tensorrt, batch 8: a.int8 ran without INT8 kernels (for"
    )
    assert f"{ratio.ratio:.3f} times as long as b/other" in said


def test_the_ratio_the_other_way_round_has_the_other_verdict() -> None:
    turned = inverted(HALF)
    assert (turned.ratio, turned.low, turned.high) == pytest.approx((2, 1 / 0.6, 1 / 0.4))
    assert (turned.verdict, turned.pairs) == ("slower", 9)
    assert inverted(TWICE).verdict == "faster"
    assert inverted(SAME).verdict == "no difference"

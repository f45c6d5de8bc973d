"""Options: what they mean, and which contradict each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import skdeploy
from skdeploy.core.errors import UsageError
from skdeploy.core.spec import ModelSpec, Precision
from skdeploy.line.options import ExportOptions
from skdeploy.line.stations.half import HalfOptions
from skdeploy.passes.trace_options import MAX_OPSET, MIN_OPSET, TraceOptions
from tests import tiny

PLAIN = ExportOptions("tiny")


@pytest.fixture
def spec() -> ModelSpec:
    """32 x 32 pixels out of a resize to 36; stride 4."""
    return tiny.spec()


@pytest.mark.parametrize(
    "options",
    [
        PLAIN,
        replace(PLAIN, precision=Precision.FP16, lowering={"fp16": HalfOptions(keep_fp32=("stem",))}),
        replace(PLAIN, trace=TraceOptions(opset=MIN_OPSET)),
        replace(PLAIN, trace=TraceOptions(opset=MAX_OPSET)),
        replace(PLAIN, trace=TraceOptions(batch=4), profile=(4, 4, 4)),
        replace(PLAIN, profile=(1, 1, 1)),
        replace(PLAIN, target="tensorrt_rtx", compute_capabilities=("8.9",)),
        replace(PLAIN, workspace_bytes=1),
    ],
)
def test_what_makes_sense_is_taken(options: ExportOptions) -> None:
    options.check()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (replace(PLAIN, precision=Precision.INT8), "INT8"),
        (
            replace(PLAIN, lowering={"fp16": HalfOptions(keep_fp32=("stem",))}),
            "--keep-fp32 is for FP16, and this is an export to FP32",
        ),
        (replace(PLAIN, trace=TraceOptions(opset=MIN_OPSET - 1)), "--opset 18"),
        (replace(PLAIN, trace=TraceOptions(opset=MAX_OPSET + 1)), "--opset 21"),
        (replace(PLAIN, trace=TraceOptions(batch=0)), "--batch 0"),
        (replace(PLAIN, trace=TraceOptions(batch=4), profile=(1, 4, 4)), "--batch 4 fixes the batch"),
        (replace(PLAIN, profile=(0, 1, 1)), "0/1/1"),
        (replace(PLAIN, profile=(2, 1, 4)), "2/1/4"),
        (replace(PLAIN, profile=(1, 8, 4)), "1/8/4"),
        (replace(PLAIN, target="onnx", compute_capabilities=("8.9",)), "--target onnx"),
        (
            replace(PLAIN, target="tensorrt", compute_capabilities=("8.9",)),
            "TensorRT does not take --compute-capability",
        ),
        (replace(PLAIN, workspace_bytes=0), "--workspace"),
        (replace(PLAIN, num_images=0), "--num-images 0"),
        (replace(PLAIN, seed=-1), "--seed -1"),
        (replace(PLAIN, seed=2**63), "--seed 9223372036854775808"),
    ],
)
def test_what_makes_none_is_refused(options: ExportOptions, words: str) -> None:
    with pytest.raises(UsageError) as error:
        options.check()
    assert words in error.value.message
    assert error.value.exit_code == 2


def test_a_library_call_is_checked_like_the_command_line() -> None:
    with pytest.raises(UsageError, match="--opset 18"):
        skdeploy.export("tiny", opset=18)
    with pytest.raises(UsageError, match="model must be a str or a Path, not ExportOptions"):
        skdeploy.export(PLAIN)  # type: ignore[arg-type]  # what an earlier version took


def test_the_cards_own_size_is_taken_whatever_the_stride(spec: ModelSpec) -> None:
    odd = spec.model_copy(update={"input": spec.input.model_copy(update={"height": 30, "width": 30})})
    assert replace(PLAIN, image_size=(30, 30)).applied(odd) == odd
    assert PLAIN.applied(spec) == spec


def test_a_larger_image_has_a_larger_resize_before_the_crop(spec: ModelSpec) -> None:
    larger = replace(PLAIN, image_size=(64, 48)).applied(spec)
    assert larger.input.shape == (3, 64, 48)
    assert larger.preprocess.resize == 72  # 36 * 64 / 32
    assert larger.network == spec.network


@pytest.mark.parametrize(("size", "advice"), [(33, "use 32"), (35, "use 36"), (2, "use 4")])
def test_a_size_with_a_ragged_edge_is_answered_with_the_nearest(spec: ModelSpec, size: int, advice: str) -> None:
    with pytest.raises(UsageError) as error:
        replace(PLAIN, image_size=(size, size)).applied(spec)
    assert f"--imgsz {size}" in error.value.message
    assert advice in error.value.advice


def test_either_side_is_checked(spec: ModelSpec) -> None:
    with pytest.raises(UsageError, match="33"):
        replace(PLAIN, image_size=(32, 33)).applied(spec)


def test_the_bundle_is_named_after_model_and_precision(spec: ModelSpec) -> None:
    assert replace(PLAIN, precision=Precision.FP16).folder(spec) == Path("build/tiny-fp16")
    assert replace(PLAIN, output=Path("x")).folder(spec) == Path("x")
    in_a_folder = spec.model_copy(update={"name": "timm/skresnet18"})
    assert PLAIN.folder(in_a_folder) == Path("build/timm-skresnet18-fp32")

"""A wrong input, of one stage or of the user's own code: blame must say that it is the preprocessing, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skdeploy.blame.blame import EngineStage
from skdeploy.blame.fed import read_fed
from skdeploy.core.errors import UsageError
from skdeploy.core.spec import Precision
from skdeploy.images.dataset import normalise
from tests.blame.faulty import blamed, bundle_of, chain, crops, edit_constant, spec_of, tensor_of

FP32, FP16 = Precision.FP32, Precision.FP16
MEAN, STD = (
    np.float32(values)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
)  # the card's


def test_blue_and_red_swapped_on_one_side() -> None:
    bundle = bundle_of(FP16)
    preprocess = spec_of(bundle).preprocess
    stages = [
        replace(stage, feed=lambda pixels: normalise(pixels[..., ::-1], preprocess))
        if stage.name == "model.onnx"
        else stage
        for stage in chain(bundle)
        if not isinstance(stage, EngineStage)
    ]
    report = blamed(bundle, list(stages))
    assert report.guilty == "preprocessing"
    assert report.fed_to == "model.onnx"
    assert report.verdict.startswith("the preprocessing is to blame: the input of model.onnx is not the card's")
    assert "before normalisation, its channels are in reverse order, such as BGR for RGB" in report.verdict


@pytest.mark.parametrize(
    ("wrong", "cause", "words"),
    [
        (lambda right: right[:, ::-1], "permuted channels", "BGR for RGB"),
        (lambda right: right * STD + MEAN, "not normalised", "the pixels as 0..1, without mean and std"),
        (lambda right: (right * STD + MEAN) * 255, "not normalised", "the pixels as 0..255"),
        (lambda right: right * 255, "factor", "255 times"),
        (lambda right: right + 0.5, "offset", "off by 0.5"),
        (lambda right: right * np.float32([2, 3, 4])[:, None, None], "channel factors", "from 2 to 4"),
        (lambda right: np.where(right > 1, np.nan, right), "not finite", "NaN"),
        (lambda right: right.transpose(0, 1, 3, 2), "differs", "without a simple pattern"),
    ],
)
def test_what_the_users_own_code_feeds(wrong: Callable[[Any], Any], cause: str, words: str) -> None:
    bundle = bundle_of(FP32)
    spec = spec_of(bundle)
    right = normalise(crops(spec), spec.preprocess)
    assert blamed(bundle, fed=right).guilty is None
    report = blamed(bundle, fed=np.ascontiguousarray(wrong(right)).astype(np.float32))
    assert report.fed_to == "your own code"
    assert tensor_of(report, "preprocessing").cause == cause
    assert words in report.verdict


def test_wrong_normalisation_inside_the_graph(copy_of: Callable[..., Path]) -> None:
    bundle = copy_of(FP16, embed=True)
    edit_constant(bundle, "model.traced.onnx", "preprocess.scale", lambda scale: scale[:, ::-1])
    report = blamed(bundle)
    assert tensor_of(report, "model.traced.onnx").module == "preprocess"
    assert "in it the preprocessing, module preprocess, tensor preprocess/Add" in report.verdict


@pytest.mark.parametrize(
    ("array", "shown"),
    [
        (np.zeros((2, 3, 32, 32)), "float64"),
        (np.zeros((1, 3, 32, 32), np.float32), "1, 3, 32, 32"),
        (None, "as .npy"),
    ],
)
def test_a_file_of_inputs_that_cannot_be_compared_is_refused(array: Any, shown: str, tmp_path: Path) -> None:
    path = tmp_path / "fed.npy"
    path.write_text("no array") if array is None else np.save(path, array)
    with pytest.raises(UsageError, match=shown) as error:
        read_fed(path, 2, spec_of(bundle_of(FP32)))
    assert "numpy.save" in error.value.advice

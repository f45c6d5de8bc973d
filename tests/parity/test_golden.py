"""What a golden file must hold, and that each thing wrong with one is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skdeploy.core.errors import UsageError
from skdeploy.core.spec import ModelSpec
from skdeploy.images.dataset import normalise
from skdeploy.parity.golden import read_golden
from tests import tiny

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return tiny.spec()


def inputs(spec: ModelSpec, count: int = 3) -> Any:
    return RANDOM.normal(0, 1, (count, *spec.input.shape)).astype(np.float32)


def logits(spec: ModelSpec, count: int = 3) -> Any:
    return RANDOM.normal(0, 1, (count, spec.network.classes)).astype(np.float32)


@pytest.mark.parametrize(("first", "second"), [("input", "logits"), ("x", "y"), ("input", "y")])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inputs_and_outputs_are_taken_under_either_name(
    first: str, second: str, dtype: type, spec: ModelSpec, tmp_path: Path
) -> None:
    x, y = inputs(spec), logits(spec)
    np.savez(tmp_path / "golden.npz", **{first: x.astype(dtype), second: y.astype(dtype)})
    golden = read_golden(tmp_path / "golden.npz")
    assert len(golden) == 3
    np.testing.assert_array_equal(golden.fed(spec), x)
    np.testing.assert_array_equal(golden.logits, y)
    assert golden.name_of(2) == "input[2]"


def test_images_go_through_the_preprocessing_of_the_card(spec: ModelSpec, tmp_path: Path) -> None:
    height, width = spec.preprocess.resize, spec.preprocess.resize
    images = RANDOM.integers(0, 256, (3, height, width, spec.input.channels), dtype=np.uint8)
    np.savez(tmp_path / "golden.npz", images=images, logits=logits(spec))
    fed = read_golden(tmp_path / "golden.npz").fed(spec)
    assert fed.dtype == np.uint8
    top, left = (height - spec.input.height) // 2, (width - spec.input.width) // 2
    crop = images[:, top : top + spec.input.height, left : left + spec.input.width]
    np.testing.assert_array_equal(fed, crop)  # the shorter side is as it should be already: only cropped

    ours = normalise(crop, spec.preprocess)
    for shift in (0.0, 0.25):
        np.savez(tmp_path / "both.npz", images=images, input=ours + np.float32(shift), logits=logits(spec))
        apart = read_golden(tmp_path / "both.npz").difference_of_inputs(spec)
        assert apart == pytest.approx(shift, abs=1e-6)  # a normalised input is about 1: float32 rounds it at 1e-7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logits": None}, "has no array named 'logits'"),
        ({"input": None}, "has no array named 'input'"),
        ({"input": None, "logits": None}, "has no array named 'input'"),
        ({"logits": lambda y: y[:2]}, "3 of 'input' but 2 rows of logits"),
        ({"logits": lambda y: y[:, 0]}, "logits is float32 of shape (3,)"),
        ({"logits": lambda y: y.astype(str)}, "logits is <U"),
        ({"input": lambda x: x[0]}, "input is float32 of shape"),
        ({"input": lambda x: x[:0], "logits": lambda y: y[:0]}, "of shape (0,"),
        ({"input": lambda x: (x * 100).astype(np.uint8)}, "input is uint8"),
        ({"input": lambda x: np.where(x == x.max(), np.nan, x)}, "1 values of input are NaN"),
        ({"logits": lambda y: y.astype(np.float64) * 1e300}, "values of logits are NaN, infinite or beyond float32"),
        ({"y": lambda _: np.zeros((3, 5))}, "has both 'logits' and 'y'"),
        ({"images": lambda _: np.zeros((3, 4, 4, 3))}, "images are float64"),
        ({"images": lambda _: np.zeros((2, 4, 4, 3), np.uint8)}, "2 of 'images' but 3 rows"),
        ({"logits": np.zeros_like}, "all values of logits are 0"),
        ({"input": lambda x: np.full_like(x, 0.5)}, "all values of input are 0.5"),
        ({"images": lambda _: np.zeros((3, 4, 4, 3), np.uint8)}, "all values of images are 0"),
        ({"input": lambda x: np.array([object()] * 3)}, "Python objects"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(
    change: dict[str, Any], words: str, spec: ModelSpec, tmp_path: Path
) -> None:
    arrays: dict[str, Any] = {"input": inputs(spec), "logits": logits(spec)}
    for name, how in change.items():
        if how is None:
            del arrays[name]
        else:
            arrays[name] = how(arrays.get(name))
    arrays = arrays or {"other": np.zeros(3)}
    np.savez(tmp_path / "golden.npz", **arrays)
    with pytest.raises(UsageError) as error:
        read_golden(tmp_path / "golden.npz")
    assert words in error.value.message
    assert error.value.advice


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x80\x04}q\x00."])
def test_a_file_that_is_no_npz_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "golden.npz").write_bytes(content)
    with pytest.raises(UsageError, match="cannot read"):
        read_golden(tmp_path / "golden.npz")


def test_a_file_that_is_not_there_is_not_called_truncated(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.npz", tmp_path):
        with pytest.raises(UsageError, match="cannot read") as error:
            read_golden(path)
        assert "truncated" not in error.value.advice
    np.savez(tmp_path / "objects.npz", input=np.array([None, 1]), logits=np.zeros(2))
    with pytest.raises(UsageError, match="Python objects") as error:
        read_golden(tmp_path / "objects.npz")
    assert "truncated" not in error.value.advice


def test_a_few_of_many_names_are_shown(tmp_path: Path) -> None:
    np.savez(tmp_path / "state.npz", **{f"layer{n:03}": np.zeros(1) for n in range(200)})
    with pytest.raises(UsageError, match=r"only 'layer000', .*'layer004' and 195 more"):
        read_golden(tmp_path / "state.npz")


def test_another_network_is_named(spec: ModelSpec, tmp_path: Path) -> None:
    np.savez(tmp_path / "classes.npz", input=inputs(spec), logits=RANDOM.normal(0, 1, (3, spec.network.classes + 1)))
    with pytest.raises(UsageError, match=f"logits of {spec.network.classes + 1} classes"):
        read_golden(tmp_path / "classes.npz").fed(spec)
    np.savez(tmp_path / "size.npz", input=RANDOM.normal(0, 1, (3, spec.input.channels, 96, 96)), logits=logits(spec))
    with pytest.raises(UsageError) as error:
        read_golden(tmp_path / "size.npz").fed(spec)
    assert "x 96 x 96" in error.value.message
    assert "--imgsz 96" in error.value.advice


def test_probabilities_are_known_from_logits(spec: ModelSpec, tmp_path: Path) -> None:
    y = np.exp(logits(spec))
    for name, array, expected in (("p", y / y.sum(1, keepdims=True), True), ("l", logits(spec), False)):
        np.savez(tmp_path / f"{name}.npz", input=inputs(spec), logits=array)
        assert read_golden(tmp_path / f"{name}.npz").looks_like_probabilities(spec) is expected

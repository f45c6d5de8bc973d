"""Inputs that no data set holds: what they are, and which rule judges them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from skdeploy.backends import onnxruntime
from skdeploy.backends import torch as torch_backend
from skdeploy.backends.base import Session
from skdeploy.backends.logits import OUTPUT
from skdeploy.core.errors import UsageError
from skdeploy.core.spec import ModelSpec, Precision, TensorSpec, Tolerance
from skdeploy.images.dataset import Dataset
from skdeploy.line.stations.engine import image_sizes
from skdeploy.parity.compare import Subject
from skdeploy.parity.reference import Reference
from skdeploy.parity.suites import (
    ALL,
    CLIPPED,
    NO_REFERENCE,
    ROUNDED,
    SYNTHETIC,
    Prepared,
    check_suites,
    has_dynamic_size,
    layouts,
    other_sizes,
    prepare,
    run_memory,
    run_suite,
    synthetic,
)
from skdeploy.passes.trace_options import TraceOptions
from tests.conftest import TinySpec
from tests.graphs.networks import Array, card, live, traced

LIMIT = Tolerance(max_rel_error=1e-2, min_cosine=0.999, min_sqnr_db=40)


@pytest.fixture
def tiny(tiny_spec: TinySpec) -> ModelSpec:
    return card(tiny_spec(2))


def who(precision: Precision = Precision.FP32) -> Subject:
    return Subject("model.onnx", "test", precision, LIMIT)


class Answering(Session):
    """A session with the logits that a test wants, whatever it is fed with; with several, one after the other."""

    def __init__(self, spec: ModelSpec, *answers: Array) -> None:
        self.inputs = (TensorSpec(name="input", dtype="float32", shape=("batch", *spec.input.shape)),)
        self.outputs = (TensorSpec(name="logits", dtype="float32", shape=("batch", spec.network.classes)),)
        self.answers = answers
        self.runs = 0

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        answer = self.answers[self.runs % len(self.answers)]
        self.runs += 1
        return {"logits": np.resize(answer, (len(feeds["input"]), answer.shape[-1])).astype(np.float32)}


@pytest.mark.parametrize("brief", [True, False])
def test_each_synthetic_suite_is_what_its_name_says(tiny: ModelSpec, brief: bool) -> None:
    found = {name: synthetic(name, tiny, brief=brief) for name in SYNTHETIC}
    for pixels in found.values():
        assert pixels.dtype == np.uint8
        assert pixels.shape[1:] == (20, 24, 3)
        assert not brief or len(pixels) == 1
    assert not found["zeros"].any()
    assert set(np.unique(found["extremes"])) == {0, 255}
    assert np.ptp(found["tiny-contrast"].astype(int)) <= 5
    assert all(np.ptp(image) > 0 for image in found["tiny-contrast"])
    assert len(np.unique(found["noise"])) > 250  # of 1,440 values, each of 256 levels is missed once in 280 times
    assert abs(found["noise"].mean() - 127.5) < 5  # of 1,440 values or more, each within 73.9: a standard error below 2


def test_the_finest_checkerboard_turns_from_pixel_to_pixel(tiny: ModelSpec) -> None:
    board = synthetic("extremes", tiny)[0].astype(int)
    assert (np.abs(np.diff(board, axis=0)) == 255).all()
    assert (np.abs(np.diff(board, axis=1)) == 255).all()


def test_suites_are_the_same_in_every_run(tiny: ModelSpec) -> None:
    for name in SYNTHETIC:
        np.testing.assert_array_equal(synthetic(name, tiny), synthetic(name, tiny))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["photographs"], ()),
        (["sizes", "noise", "noise"], ("noise", "sizes")),
        (["all"], ALL),
        (["photographs", "all"], ALL),
    ],
)
def test_names_of_suites(names: list[str], expected: tuple[str, ...]) -> None:
    assert check_suites(names) == expected


def test_a_suite_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(UsageError, match="there is no suite 'snow'") as refusal:
        check_suites(["noise", "snow"])
    assert "tiny-contrast" in refusal.value.advice


def prepared(tiny: ModelSpec, expected: Array | None) -> Prepared:
    pixels = np.zeros((2, 20, 24, 3), np.uint8)
    return Prepared("zeros", "", pixels, tiny, None if expected is None else {OUTPUT: expected.astype(np.float32)})


def test_an_error_is_relative_to_the_images_where_the_suite_has_next_to_no_signal(tiny: ModelSpec) -> None:
    """The same absolute error: rounding of the images' size is allowed, though it is as large as the suite's own logits."""
    faint = np.array([[1e-3, 0, 0, 0, 0], [0, 1e-3, 0, 0, 0]])
    session = Answering(tiny, faint + 1e-3)
    passed = run_suite(session, prepared(tiny, faint), 1.0, who())
    assert (passed.verdict, passed.problems) == ("pass", ())
    assert passed.error == pytest.approx(1e-3, rel=1e-4)  # float32 logits
    assert passed.metrics is not None
    assert passed.metrics.max_rel_error == pytest.approx(1, rel=1e-3)  # recorded as it is
    failed = run_suite(session, prepared(tiny, faint), 0.05, who())
    assert failed.verdict == "fail"
    assert failed.problems == ("max error 2.00e-02 of the largest logit, allowed 1e-02",)


def test_a_loud_suite_is_relative_to_itself(tiny: ModelSpec) -> None:
    loud = np.full((2, 5), 100.0)
    for off, verdict in ((0.5, "pass"), (1.5, "fail")):
        assert run_suite(Answering(tiny, loud + off), prepared(tiny, loud), 1.0, who()).verdict == verdict


def test_int8_is_recorded_however_far_it_clips_but_must_be_finite(tiny: ModelSpec) -> None:
    expected = np.ones((2, 5))
    far = run_suite(Answering(tiny, -expected), prepared(tiny, expected), 1.0, who(Precision.INT8))
    assert (far.verdict, far.allowed, far.note) == ("recorded", None, CLIPPED.format("INT8", "image"))
    assert far.error == pytest.approx(2)
    broken = run_suite(Answering(tiny, expected * np.nan), prepared(tiny, expected), 1.0, who(Precision.INT8))
    assert broken.verdict == "fail"
    assert broken.problems == ("10 logits are NaN or infinite, first in image 0",)


def test_fp16s_error_on_made_up_input_informs_and_does_not_decide(tiny: ModelSpec) -> None:
    expected = np.ones((2, 5))
    far = run_suite(Answering(tiny, -expected), prepared(tiny, expected), 1.0, who(Precision.FP16))
    assert (far.verdict, far.allowed, far.note, far.problems) == ("recorded", None, ROUNDED.format("FP16", "image"), ())
    assert far.error == pytest.approx(2)
    same_function = run_suite(Answering(tiny, -expected), prepared(tiny, expected), 1.0, who())
    assert same_function.verdict == "fail"  # FP32 has nothing to round


def test_fp16_that_overflows_on_a_suite_is_told_the_way_out(tiny: ModelSpec) -> None:
    expected = np.ones((2, 5))
    found = run_suite(Answering(tiny, expected * np.inf), prepared(tiny, expected), 1.0, who(Precision.FP16))
    assert found.verdict == "fail"
    assert found.problems[0].startswith("10 logits are NaN or infinite, first in image 0: FP16 ends at 65504")
    assert "--keep-fp32" in found.problems[0]


def test_where_the_reference_is_not_finite_nothing_is_claimed(tiny: ModelSpec) -> None:
    found = run_suite(Answering(tiny, np.ones((2, 5))), prepared(tiny, None), 1.0, who())
    assert (found.verdict, found.note, found.error) == ("recorded", NO_REFERENCE, None)


def images(count: int = 3) -> Dataset:
    pixels = np.random.default_rng(1).integers(0, 256, (count, 40, 44, 3), dtype=np.uint8)
    return Dataset("images", pixels=pixels)


def network_of(spec: ModelSpec) -> Reference:
    network = live(spec)
    return Reference("torch", lambda at: torch_backend.open_session(network, at))


def test_a_reference_that_breaks_on_one_suite_still_serves_the_others(tiny: ModelSpec) -> None:
    class Breaking(Answering):
        def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            flat = np.ptp(feeds["input"], axis=(1, 2, 3)) < 3  # zeros, normalised by three means
            return {"logits": np.where(flat[:, None], np.nan, np.ones((1, 5))).astype(np.float32)}

    found = prepare(
        ("noise", "zeros"), images(), tiny, Reference("breaks", lambda spec: Breaking(spec, np.ones((1, 5))))
    )
    assert {suite.suite: suite.expected is None for suite in found} == {"noise": False, "zeros": True}


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Callable[[ModelSpec], Path]:
    def make(spec: ModelSpec) -> Path:
        path = tmp_path_factory.mktemp("dynamic") / "model.onnx"
        ir.save(traced(spec, TraceOptions(exporter="torchscript", dynamic_size=True)), path)
        return path

    return make


def test_a_graph_of_any_size_is_in_parity_at_other_sizes_and_a_wrong_one_is_not(
    tiny: ModelSpec, dynamic: Callable[[ModelSpec], Path]
) -> None:
    with onnxruntime.open_session(dynamic(tiny)) as session:
        assert has_dynamic_size(session.inputs)
        suites = prepare(("sizes",), images(), tiny, network_of(tiny), dynamic_size=True)
        assert [suite.case for suite in suites] == ["10x12", "40x48", "15x36"]
        assert {run_suite(session, suite, 0.0, who()).verdict for suite in suites} == {"pass"}
        other = live(tiny)
        other.get_parameter("stages.1.0.sk.branches.1.conv.weight").mul_(1.5)
        another = Reference("another", lambda at: torch_backend.open_session(other, at))
        wrong = prepare(("sizes",), images(), tiny, another, dynamic_size=True)
        found = [run_suite(session, suite, 0.0, who()) for suite in wrong]
    assert {result.verdict for result in found} == {"fail"}
    assert any("SQNR" in problem for result in found for problem in result.problems)  # the whole tolerance


def test_other_sizes_are_inside_the_profile_that_engines_are_built_for(tiny: ModelSpec) -> None:
    low, _, high = image_sizes(tiny)
    for spec in other_sizes(tiny):
        assert low[0] <= spec.input.height <= high[0]
        assert low[1] <= spec.input.width <= high[1]
        assert spec.preprocess.resize >= max(spec.input.height, spec.input.width)


def test_a_graph_of_one_size_is_asked_for_no_other(tiny: ModelSpec) -> None:
    assert prepare(("sizes",), images(), tiny, network_of(tiny), dynamic_size=False) == []
    assert not has_dynamic_size((TensorSpec(name="input", dtype="float32", shape=("batch", 3, 20, 24)),))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_layouts_have_the_same_values_and_other_strides(dtype: type) -> None:
    array = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 4)).astype(dtype)
    for words, view in layouts(array).items():
        np.testing.assert_array_equal(view, array, err_msg=words)
        assert view.dtype == array.dtype
        assert not view.flags.c_contiguous, words


class IgnoresStrides(Session):
    """Reads as many values as it wants from where an array begins: what a pointer without its strides means."""

    def __init__(self, spec: ModelSpec) -> None:
        self.inputs = (TensorSpec(name="input", dtype="float32", shape=("batch", *spec.input.shape)),)
        self.outputs = (TensorSpec(name="logits", dtype="float32", shape=("batch", 5)),)

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        array = feeds["input"]
        whole = array
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        read = np.resize(whole.ravel(order="K"), array.shape)
        return {"logits": read.reshape(len(array), 5, -1).mean(2).astype(np.float32)}


def test_a_session_that_ignores_strides_is_caught(tiny: ModelSpec) -> None:
    pixels = images().load(tiny)
    found = run_memory(IgnoresStrides(tiny), pixels, tiny, who())
    assert found.verdict == "fail"
    assert len(found.problems) == 3
    assert found.problems[0].startswith("images in every second column in memory give other logits, by ")


def test_the_backends_that_run_here_give_the_same_bits_from_any_memory(
    tiny: ModelSpec, dynamic: Callable[[ModelSpec], Path]
) -> None:
    pixels = images().load(tiny)
    with onnxruntime.open_session(dynamic(tiny)) as session:
        found = run_memory(session, pixels, tiny, who())
    with network_of(tiny).open(tiny) as session:
        torch = run_memory(session, pixels, tiny, who())
    for result in (found, torch):
        assert (result.verdict, result.error, result.allowed) == ("pass", 0.0, 0.0)


def test_a_session_that_does_not_repeat_its_bits_is_held_to_the_tolerance(tiny: ModelSpec) -> None:
    pixels, one = images().load(tiny), np.ones((1, 5))
    near = run_memory(Answering(tiny, one, one + 1e-4, one + 2e-4), pixels, tiny, who())
    assert (near.verdict, near.allowed) == ("pass", LIMIT.max_rel_error)
    far = run_memory(Answering(tiny, one, one + 1e-4, one + 0.1), pixels, tiny, who())
    assert far.verdict == "fail"

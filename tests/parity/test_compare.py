"""Running images through a session: what makes a comparison pointless fails first, and what is off is caught."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from skdeploy.backends import onnxruntime
from skdeploy.backends.base import Session
from skdeploy.backends.logits import OUTPUT, run_images
from skdeploy.core.errors import DependencyError
from skdeploy.core.spec import ModelSpec, Precision, TensorSpec
from skdeploy.images.feeds import batches_of, feeds_of
from skdeploy.parity.compare import BATCHES, Subject, batch_invariance, compare, unproven
from skdeploy.parity.report import BatchInvariance, Comparison
from skdeploy.passes.trace_options import TraceOptions
from tests.conftest import TinySpec
from tests.graphs.networks import MEAN, STD, Array, card, live, relative_error, torch_logits, traced

Answer = Callable[[Array], dict[str, Array]]


class Answering(Session):
    """A session that computes whatever the test says from its input planes."""

    def __init__(self, spec: ModelSpec, answer: Answer, batch: int | str = "batch") -> None:
        self.inputs = (TensorSpec(name="input", dtype="float32", shape=(batch, *spec.input.shape)),)
        self.outputs = (TensorSpec(name="logits", dtype="float32", shape=(batch, spec.network.classes)),)
        self.answer = answer
        self.fed: list[int] = []
        self.profile: dict[str, tuple[tuple[int, ...], ...]] | None = None  # what an engine's session has

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.fed.append(len(feeds["input"]))
        return self.answer(feeds["input"])


@pytest.fixture
def tiny(tiny_spec: TinySpec) -> ModelSpec:
    return card(tiny_spec(2))


def crops(count: int) -> Array:
    return np.random.default_rng(0).integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)


def planes(pixels: Array) -> Array:
    """The card's normalisation, written down a second time."""
    return ((pixels / 255 - MEAN) / STD).transpose(0, 3, 1, 2)


def means(inputs: Array) -> dict[str, Array]:
    """Five logits of each image, from that image alone."""
    mean = inputs.mean((2, 3)).astype(np.float32)
    return {"logits": np.concatenate([mean, 2 * mean[:, :2]], axis=1)}


def verdict_of(session: Session, pixels: Array, reference: Array, spec: ModelSpec) -> Comparison:
    return compare(
        run_images(session, pixels, spec),
        {OUTPUT: reference},
        spec,
        Subject("model.onnx", "test", Precision.FP32, spec.tolerance[Precision.FP32]),
    )


def test_a_session_that_agrees_passes(tiny: ModelSpec) -> None:
    pixels = crops(11)
    found = verdict_of(Answering(tiny, means), pixels, means(planes(pixels))["logits"], tiny)
    assert found.verdict == "pass"
    assert found.problems == ()
    assert found.metrics is not None
    assert found.metrics.images == 11


def first_nan(inputs: Array) -> dict[str, Array]:
    logits = means(inputs)["logits"]
    logits[-1, 2] = np.nan
    return {"logits": logits}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (first_nan, "1 logits are NaN or infinite, first in image 3"),
        (lambda x: {"logits": means(x)["logits"] / np.float32(0)}, "20 logits are NaN or infinite, first in image 0"),
        (lambda x: {"scores": means(x)["logits"]}, "no output named 'logits', only ['scores']"),
        (lambda x: {}, "no output named 'logits', only []"),
        (lambda x: {"logits": means(x)["logits"][:, :4]}, "logits have shape (4, 4), expected (4, 5)"),
        (lambda x: {"logits": means(x)["logits"][:-1]}, "logits have shape (3, 5), expected (4, 5)"),
        (lambda x: {"logits": np.repeat(means(x)["logits"], 2, 0)}, "logits have shape (8, 5), expected (4, 5)"),
        (lambda x: {"logits": means(x)["logits"][..., None]}, "logits have shape (4, 5, 1), expected (4, 5)"),
        (lambda x: {"logits": np.float32(1) * np.ones(())}, "logits have shape (1,), expected (4, 5)"),
        (lambda x: {"logits": means(x)["logits"].astype(np.float16)}, "logits are float16, expected float32"),
        (lambda x: {"logits": means(x)["logits"].astype(np.float64)}, "logits are float64, expected float32"),
        (
            lambda x: means(x) | {"attention.stages.0.0": np.full((len(x), 2, 8), np.nan)},
            "64 attention.stages.0.0 are NaN or infinite, first in image 0",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")  # the infinite logits are the test
def test_what_makes_a_comparison_pointless_fails_first(tiny: ModelSpec, answer: Answer, problem: str) -> None:
    pixels = crops(4)
    found = verdict_of(Answering(tiny, answer), pixels, means(planes(pixels))["logits"], tiny)
    assert found.verdict == "fail"
    assert found.problems == (problem,)
    assert found.metrics is None


@pytest.fixture
def graph(tiny: ModelSpec, tmp_path: Path) -> Path:
    ir.save(traced(tiny, TraceOptions(exporter="torchscript")), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_a_graph_agrees_with_torch_and_a_perturbed_weight_does_not(tiny: ModelSpec, graph: Path) -> None:
    pixels = crops(11)
    with onnxruntime.open_session(graph) as session:
        sound = verdict_of(session, pixels, torch_logits(live(tiny), planes(pixels)), tiny)
        other = live(tiny)
        other.stages[1][0].sk.branches[1].conv.weight *= 1.001
        found = verdict_of(session, pixels, torch_logits(other, planes(pixels)), tiny)
    assert sound.verdict == "pass"
    assert found.verdict == "fail"
    assert any("of the largest logit, allowed 1e-04" in problem for problem in found.problems)


def test_raw_pixels_are_fed_to_graphs_that_normalise(tiny: ModelSpec, tmp_path: Path) -> None:
    options = TraceOptions(exporter="torchscript", embed_preprocess=True)
    ir.save(traced(tiny, options), tmp_path / "model.onnx")
    pixels = crops(5)
    with onnxruntime.open_session(tmp_path / "model.onnx") as session:
        assert feeds_of(pixels, tiny, session.inputs)["input"] is pixels
        assert verdict_of(session, pixels, torch_logits(live(tiny), planes(pixels)), tiny).verdict == "pass"


def test_normalised_planes_are_fed_to_the_others(tiny: ModelSpec) -> None:
    session = Answering(tiny, means)
    fed = feeds_of(crops(3), tiny, session.inputs)["input"]
    assert fed.dtype == np.float32
    assert relative_error(fed, planes(crops(3))) < 1e-6  # float32 rounds a scale, an offset, a product and a sum


def test_a_dynamic_batch_is_fed_in_parts_that_cover_every_image(tiny: ModelSpec) -> None:
    session = Answering(tiny, means)
    outputs = run_images(session, crops(19), tiny, 8)
    assert session.fed == [8, 8, 3]
    np.testing.assert_allclose(outputs["logits"], means(planes(crops(19)))["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 4, 5, 7])
def test_a_fixed_batch_is_filled_up_and_the_fill_is_cut_off(tiny: ModelSpec, count: int) -> None:
    session = Answering(tiny, means, batch=4)
    outputs = run_images(session, crops(count), tiny)
    assert set(session.fed) == {4}
    assert outputs["logits"].shape == (count, 5)
    # float32 means of 480 numbers near one
    np.testing.assert_allclose(outputs["logits"], means(planes(crops(count)))["logits"], rtol=1e-5, atol=1e-5)


def test_the_counts_of_a_fixed_batch_are_those_of_the_images(tiny: ModelSpec) -> None:
    session = Answering(tiny, means, batch=4)
    assert [count for _, count in batches_of(crops(6), tiny, session.inputs)] == [4, 2]


def invariance(
    session: Session, pixels: Array, spec: ModelSpec, tolerance: float = 1e-5, batches: Sequence[int] = BATCHES
) -> BatchInvariance | None:
    """Of a session whose outputs for all images are known, as parity knows them."""
    outputs = run_images(session, pixels, spec)
    if isinstance(session, Answering):
        session.fed.clear()
    return batch_invariance(session, pixels, outputs, spec, artifact="model.onnx", tolerance=tolerance, batches=batches)


def test_a_tiny_network_gives_the_same_logits_in_every_batch_from_1_to_32(tiny: ModelSpec, graph: Path) -> None:
    with onnxruntime.open_session(graph) as session:
        found = invariance(session, crops(9), tiny, batches=tuple(range(1, 33)))
    assert found is not None
    assert found.verdict == "pass", found.problem
    assert found.batches == tuple(range(1, 33))
    # Kernels may sum a thousand terms in another order: 1e-5 is a hundred times float32's precision.
    assert found.max_rel_error <= 1e-5


def mixed(inputs: Array) -> dict[str, Array]:
    """Wrong in batches above 4 only: the mean is over the whole batch."""
    logits = means(inputs)["logits"]
    return {"logits": logits + (logits.mean(0) if len(logits) > 4 else 0)}


def shifted(inputs: Array) -> dict[str, Array]:
    """Each image gets the logits of its neighbour, if there is one."""
    return {"logits": np.roll(means(inputs)["logits"], 1, 0)}


def overflowing(inputs: Array) -> dict[str, Array]:
    logits = means(inputs)["logits"]
    return {"logits": np.full_like(logits, np.nan) if len(logits) == 32 else logits}


@pytest.mark.parametrize(
    ("answer", "batch"),
    [(mixed, "1|2|5|32"), (shifted, "1|2|5|32"), (overflowing, "32")],
    ids=["mixed", "shifted", "nan"],
)
def test_a_session_that_varies_with_the_batch_is_caught(tiny: ModelSpec, answer: Answer, batch: str) -> None:
    found = invariance(Answering(tiny, answer), crops(9), tiny, 1e-2)
    assert found is not None
    assert found.verdict == "fail"
    assert found.problem.startswith("images differ by")
    assert found.problem.rpartition(" ")[2] in batch.split("|")
    assert type(found).model_validate_json(found.model_dump_json()) == found


def test_images_are_repeated_where_a_batch_takes_more(tiny: ModelSpec) -> None:
    session = Answering(tiny, means)
    found = invariance(session, crops(3), tiny)
    assert found is not None
    assert found.verdict == "pass"
    assert session.fed == [1, 2, 5, 32]
    assert found.batches == (1, 2, 3, 5, 32)  # with the three together, which parity has run


def test_a_fixed_batch_has_nothing_to_vary(tiny: ModelSpec) -> None:
    session = Answering(tiny, means, batch=4)
    assert invariance(session, crops(3), tiny) is None
    assert session.fed == []


def test_what_cannot_run_is_unproven_with_the_reason(tiny: ModelSpec) -> None:
    engine = Subject("engines/x.engine", "tensorrt", Precision.FP16, tiny.tolerance[Precision.FP32])
    found = unproven(engine, DependencyError("no GPU", advice="get one"))
    assert (found.verdict, found.reason, found.metrics) == ("unproven", "no GPU", None)


@pytest.mark.parametrize(("count", "fed"), [(11, [8, 4]), (9, [8, 4]), (3, [4]), (16, [8, 8])])
def test_an_engine_gets_no_batch_below_its_profile(tiny: ModelSpec, count: int, fed: list[int]) -> None:
    session = Answering(tiny, means)
    session.profile = {"input": tuple((size, *tiny.input.shape) for size in (4, 8, 16))}
    outputs = run_images(session, crops(count), tiny)
    assert session.fed == fed
    # float32 means of 480 numbers near one
    np.testing.assert_allclose(outputs["logits"], means(planes(crops(count)))["logits"], rtol=1e-5, atol=1e-5)


def test_an_engine_gets_no_batch_above_its_profile(tiny: ModelSpec) -> None:
    session = Answering(tiny, means)
    session.profile = {"input": tuple((size, *tiny.input.shape) for size in (1, 2, 2))}
    assert run_images(session, crops(5), tiny)["logits"].shape == (5, 5)
    assert session.fed == [2, 2, 1]


def test_batches_outside_the_profile_are_not_compared(tiny: ModelSpec) -> None:
    session = Answering(tiny, means)
    session.profile = {"input": tuple((size, *tiny.input.shape) for size in (2, 4, 8))}
    found = invariance(session, crops(9), tiny)
    assert found is not None
    assert (found.batches, found.verdict) == ((2, 5, 8), "pass")
    session.profile = {"input": tuple((size, *tiny.input.shape) for size in (4, 4, 4))}
    assert invariance(session, crops(9), tiny) is None

"""Everything of a run behind the real ``cuda-bindings``, with a driver and an engine in host memory: see test_stand_in.py.

On a GPU: test_tensorrt.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from skdeploy.backends._plan_runner import PlanSession
from skdeploy.backends.device_memory import load_driver
from skdeploy.core.errors import DependencyError, EngineError, UsageError
from skdeploy.engines._api import Compiler
from tests.backends.fake_tensorrt import ENGINE_MS, FakeEngine, FakeTensorRT, expected, feeds
from tests.backends.stand_in import COPY_MS, ILLEGAL_ADDRESS, OUT_OF_MEMORY, StandIn

SMALL = ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))
LARGE = ((3, 3, 8, 8), (8, 3, 8, 8), (16, 3, 8, 8))


class Machine:
    """A driver with an engine of two profiles, and the session on it."""

    def __init__(self) -> None:
        self.driver = StandIn()
        self.engine = FakeEngine(self.driver, [SMALL, LARGE])

    def open(self, engine: FakeEngine | None) -> PlanSession:
        trt = cast(Compiler, FakeTensorRT(engine))
        return PlanSession(trt, load_driver(), Path("some.engine"), b"a plan", None)


@pytest.fixture
def machine() -> Iterator[Machine]:
    found = Machine()
    yield found
    assert found.driver.faults == []


@pytest.fixture
def session(machine: Machine) -> Iterator[PlanSession]:
    with machine.open(machine.engine) as session:
        yield session


def test_each_run_gives_what_the_engine_computes_of_its_own_feeds(session: PlanSession) -> None:
    batches = (2, 1, 16, 3)
    found = [session.run(feeds(batch, seed=batch))["logits"] for batch in batches]
    for batch, logits in zip(batches, found, strict=True):  # looked at last: a later run must not have overwritten them
        assert logits.dtype == np.float32
        np.testing.assert_array_equal(logits, expected(feeds(batch, seed=batch)["images"]))
    images = feeds(2)["images"][:, ::-1, :, ::-1]  # not contiguous
    np.testing.assert_array_equal(session.run({"images": images})["logits"], expected(images))


def test_runs_that_fit_allocate_nothing(machine: Machine, session: PlanSession) -> None:
    session.run(feeds(4))
    before = machine.driver.calls.count("cuMemAlloc")
    for batch in (4, 1, 3, 2):
        session.run(feeds(batch))
    assert machine.driver.calls.count("cuMemAlloc") == before == 2
    session.run(feeds(16))
    assert machine.driver.calls.count("cuMemAlloc") == 4
    assert machine.driver.alive["device memory"] == 2


def test_profile_is_changed_only_when_another_is_better_and_before_the_shape(
    machine: Machine, session: PlanSession
) -> None:
    for batch in (16, 8, 4):  # 4 is in both: 4 / 2 = 8 / 4, the first
        session.run(feeds(batch))
    assert machine.engine.contexts[0].asked == [
        ("profile", 1),
        ("images", (16, 3, 8, 8)),
        ("images", (8, 3, 8, 8)),
        ("profile", 0),
        ("images", (4, 3, 8, 8)),
    ]


def test_batch_outside_all_profiles_is_told_both(session: PlanSession) -> None:
    with pytest.raises(UsageError, match="batch 17 is outside the engine's 2 profiles") as refusal:
        session.run(feeds(17))
    assert "batch 1 to 4, best at 2; or batch 3 to 16, best at 8" in refusal.value.advice


def test_out_of_memory_is_told_and_a_smaller_batch_runs(machine: Machine, session: PlanSession) -> None:
    machine.driver.limit(4 * 3 * 8 * 8 * 2)
    with pytest.raises(EngineError, match="cannot allocate input images: CUDA_ERROR_OUT_OF_MEMORY"):
        session.run(feeds(5))
    np.testing.assert_array_equal(session.run(feeds(4))["logits"], expected(feeds(4)["images"]))


def test_shapes_that_tensorrt_cannot_work_out_are_told(
    machine: Machine, session: PlanSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 10.13 on ``infer_shapes`` raises for what is not a missing shape."""

    def refuse() -> list[str]:
        raise RuntimeError("broadcast dimensions must be conformable")

    monkeypatch.setattr(machine.engine.contexts[0], "infer_shapes", refuse)
    with pytest.raises(EngineError, match=r"some.engine: TensorRT cannot work out .*: broadcast dimensions"):
        session.run(feeds(1))


def test_no_runtime_is_a_fault_of_the_machine(machine: Machine) -> None:
    """pybind11 raises a TypeError for a constructor that answers null; the engine may be good."""
    trt = FakeTensorRT(machine.engine)

    def null(logger: object) -> object:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt.Runtime = null  # type: ignore[method-assign, assignment]  # one fault in a stand-in
    with pytest.raises(DependencyError, match=r"tensorrt 10.13.0 cannot make a runtime on this machine") as refusal:
        PlanSession(cast(Compiler, trt), load_driver(), Path("some.engine"), b"a plan", None)
    assert "nvidia-smi" in refusal.value.advice
    assert machine.driver.alive == {}


def test_error_of_a_kernel_is_told_by_name(machine: Machine, session: PlanSession) -> None:
    machine.driver.fail("cuStreamSynchronize", ILLEGAL_ADDRESS)
    with pytest.raises(EngineError, match="CUDA_ERROR_ILLEGAL_ADDRESS, an illegal memory access"):
        session.run(feeds(1))


def test_closing_frees_everything_once(machine: Machine) -> None:
    session = machine.open(machine.engine)
    session.run(feeds(2))
    session.close()
    session.close()
    assert machine.driver.alive == {}
    with pytest.raises(UsageError, match="closed"):
        session.run(feeds(2))
    with pytest.raises(UsageError, match="closed"):
        session.bind(feeds(2))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("no engine", "tensorrt 10.13.0 cannot load some.engine: magicTagRead == magicTag"),
        ("no room", "cannot make a context of some.engine"),
        ("no dtype", "'images' in bfloat16"),
    ],
)
def test_session_that_does_not_open_leaves_nothing(broken: str, message: str, machine: Machine) -> None:
    machine.engine.roomy = broken != "no room"
    other = FakeEngine(machine.driver, [SMALL], "BF16")
    with pytest.raises((EngineError, UsageError), match=message):
        machine.open({"no engine": None, "no dtype": other}.get(broken, machine.engine))
    assert machine.driver.alive == {}


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_bound_plan_runs_again_and_again_and_times_the_engine_alone(
    cuda_graph: bool, machine: Machine, session: PlanSession
) -> None:
    with session.bind(feeds(2), cuda_graph=cuda_graph) as bound:
        driver = machine.driver
        for _ in range(3):
            begun = driver.clock_ms
            times = bound.run()
            assert times.device_ms == ENGINE_MS
            assert driver.clock_ms - begun == 2 * COPY_MS + ENGINE_MS  # copied in and out each time
            assert times.host_ms > 0
            np.testing.assert_array_equal(bound.outputs()["logits"], expected(feeds(2)["images"]))


def test_graph_is_recorded_after_an_inference_and_launched_instead_of_one(
    machine: Machine, session: PlanSession
) -> None:
    with session.bind(feeds(2), cuda_graph=True) as bound:
        before = machine.driver.calls
        assert before[: before.index("cuStreamBeginCapture")].count("execute") == 1
        bound.run()
        bound.run()
        calls = machine.driver.calls
        assert (calls.count("execute"), calls.count("cuGraphLaunch")) == (before.count("execute"), 2)


def test_bound_plans_and_their_session_do_not_touch_each_other(session: PlanSession) -> None:
    with session.bind(feeds(2, seed=1), cuda_graph=True) as one, session.bind(feeds(16, seed=2)) as other:
        for _ in range(2):
            one.run()
            other.run()
            np.testing.assert_array_equal(session.run(feeds(1, seed=3))["logits"], expected(feeds(1, seed=3)["images"]))
            np.testing.assert_array_equal(one.outputs()["logits"], expected(feeds(2, seed=1)["images"]))
            np.testing.assert_array_equal(other.outputs()["logits"], expected(feeds(16, seed=2)["images"]))


def test_engine_that_no_graph_can_hold_is_told_and_leaves_nothing(machine: Machine) -> None:
    with machine.open(machine.engine) as session:
        make = machine.engine.create_execution_context

        def unrecordable() -> object:
            context = make()
            assert context is not None
            context.capturable = False
            return context

        machine.engine.create_execution_context = unrecordable  # type: ignore[method-assign, assignment]  # one fault in a stand-in
        with pytest.raises(EngineError, match=r"some.engine cannot run as a CUDA graph: .* could not start") as refusal:
            session.bind(feeds(2), cuda_graph=True)
        assert "without CUDA graphs" in refusal.value.advice
        assert session.run(feeds(1))["logits"].shape == (1, 4)
    assert machine.driver.alive == {}


@pytest.mark.parametrize(
    ("function", "code", "name"),
    [
        ("cuMemHostAlloc", OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"),
        ("cuEventCreate", ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("cuGraphInstantiateWithFlags", ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"),
    ],
)
def test_bind_that_fails_anywhere_leaves_nothing(function: str, code: int, name: str, machine: Machine) -> None:
    with machine.open(machine.engine) as session:
        machine.driver.fail(function, code)
        with pytest.raises(EngineError, match=name):
            session.bind(feeds(2), cuda_graph=True)
        with session.bind(feeds(2), cuda_graph=True) as bound:
            bound.run()
    assert machine.driver.alive == {}


def test_bound_plan_has_no_outputs_before_it_ran_or_after_it_was_closed(session: PlanSession) -> None:
    bound = session.bind(feeds(2))
    with pytest.raises(UsageError, match="no outputs"):
        bound.outputs()
    bound.run()
    bound.close()
    bound.close()
    with pytest.raises(UsageError, match="no outputs"):
        bound.outputs()
    with pytest.raises(UsageError, match="closed"):
        bound.run()


def test_bind_checks_feeds_as_run_does(session: PlanSession) -> None:
    with pytest.raises(UsageError, match="dtype"):
        session.bind({"images": np.zeros((1, 3, 8, 8), np.float32)})
    with pytest.raises(UsageError, match="batch 17"):
        session.bind(feeds(17))

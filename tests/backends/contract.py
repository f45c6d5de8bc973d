"""What every backend promises. A backend is tested by a subclass that says how to open it; see test_contract.py."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from skdeploy.backends.base import Array, Session
from skdeploy.core.errors import UsageError
from skdeploy.core.packages import Availability
from skdeploy.core.spec import ModelSpec
from skdeploy.passes.trace_options import TraceOptions
from tests.conftest import TinySpec
from tests.graphs.networks import card, images, live, relative_error, torch_logits, traced


class BackendContract(abc.ABC):
    """A backend opens ``live(card)``, input float32 (batch, 3, 20, 24), and gives logits (batch, 5)."""

    # Relative to the largest logit, of float32 arithmetic against float64; see FLOAT32_ERROR in tests/graphs/networks.py.
    tolerance = 2e-5

    @abc.abstractmethod
    def probe(self) -> Availability: ...

    @abc.abstractmethod
    def open(self, spec: ModelSpec, folder: Path) -> Session:
        """A session of ``live(spec)``; ``folder`` is for the files that it takes."""

    def graph(self, spec: ModelSpec, folder: Path) -> Path:
        """The network as an ONNX file, for the backends that take one."""
        import onnx_ir as ir

        ir.save(traced(spec, TraceOptions(exporter="torchscript")), folder / "model.onnx")
        return folder / "model.onnx"

    @pytest.fixture
    def spec(self, tiny_spec: TinySpec) -> ModelSpec:
        return card(tiny_spec(2))

    @pytest.fixture
    def session(self, spec: ModelSpec, tmp_path: Path) -> Iterator[Session]:
        with self.open(spec, tmp_path) as session:
            yield session

    def test_probe_says_that_it_works_here(self) -> None:
        answer = self.probe()
        assert answer.available
        assert answer.name
        assert answer.version
        assert answer.device
        assert not answer.reason

    def test_inputs_and_outputs_are_named_and_typed(self, session: Session) -> None:
        (entry,), (result,) = session.inputs, session.outputs
        assert (entry.name, entry.dtype, entry.shape) == ("input", "float32", ("batch", 3, 20, 24))
        assert (result.name, result.dtype, result.shape) == ("logits", "float32", ("batch", 5))

    @pytest.mark.parametrize("batch", [1, 3])
    def test_outputs_are_those_of_torch_in_float64(self, session: Session, spec: ModelSpec, batch: int) -> None:
        outputs = session.run({"input": images(batch)})
        assert list(outputs) == ["logits"]
        assert outputs["logits"].dtype == np.float32
        assert relative_error(outputs["logits"], torch_logits(live(spec), images(batch))) < self.tolerance

    def test_a_second_run_does_not_change_the_first_result(self, session: Session) -> None:
        first = session.run({"input": images(2, seed=1)})["logits"]
        kept = first.copy()
        second = session.run({"input": images(2, seed=2)})["logits"]
        assert np.array_equal(first, kept)
        assert not np.array_equal(first, second)

    def test_input_that_is_not_contiguous_or_read_only_is_taken_as_it_reads(self, session: Session) -> None:
        inputs = images(3)
        inputs.flags.writeable = False
        strided = np.asfortranarray(inputs)
        reversed_twice = inputs[::-1].copy()[::-1]
        assert not strided.flags.c_contiguous
        assert not reversed_twice.flags.c_contiguous
        expected = session.run({"input": inputs})["logits"]
        assert np.array_equal(inputs, images(3))
        for array in (strided, reversed_twice):
            assert np.array_equal(session.run({"input": array})["logits"], expected)

    @pytest.mark.parametrize(
        ("feeds", "words"),
        [
            ({}, r"missing \['input'\], unknown \[\]"),
            ({"image": images(1)}, r"missing \['input'\], unknown \['image'\]"),
            ({"input": images(1), "mask": images(1)}, r"missing \[\], unknown \['mask'\]"),
            ({"input": images(1).astype(np.float64)}, "'input' has dtype float64, expected float32"),
            ({"input": images(1).astype(np.float16)}, "'input' has dtype float16, expected float32"),
            ({"input": images(1)[0]}, r"'input' has shape \(3, 20, 24\), expected input: float32\[batch, 3, 20, 24\]"),
            ({"input": images(1)[None]}, r"'input' has shape \(1, 1, 3, 20, 24\)"),
            ({"input": images(1, 20, 23)}, r"'input' has shape \(1, 3, 20, 23\)"),
            ({"input": images(1)[:, :2]}, r"'input' has shape \(1, 2, 20, 24\)"),
            ({"input": images(1)[:0]}, r"'input' has shape \(0, 3, 20, 24\)"),
        ],
        ids=["none", "another", "one-more", "float64", "float16", "rank-3", "rank-5", "width", "channels", "no-image"],
    )
    def test_feeds_that_do_not_fit_are_refused(self, session: Session, feeds: dict[str, Array], words: str) -> None:
        with pytest.raises(UsageError, match=words):
            session.run(feeds)
        assert np.isfinite(session.run({"input": images(1)})["logits"]).all()

    def test_a_closed_session_says_so_and_may_be_closed_twice(self, spec: ModelSpec, tmp_path: Path) -> None:
        with self.open(spec, tmp_path) as session:
            session.run({"input": images(1)})
            session.close()
            with pytest.raises(UsageError, match="closed"):
                session.run({"input": images(1)})

    def test_the_context_manager_closes_even_after_an_error(self, spec: ModelSpec, tmp_path: Path) -> None:
        opened = self.open(spec, tmp_path)
        with pytest.raises(UsageError), opened as session:
            session.run({})
        with pytest.raises(UsageError, match="closed"):
            opened.run({"input": images(1)})

"""Does the same give the same? Runs that repeat and runs that do not; an engine that is built twice."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skdeploy.backends import onnxruntime
from skdeploy.backends.base import Session
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.core.errors import IntegrityError
from skdeploy.core.files import digest_file
from skdeploy.core.spec import ModelSpec, Precision, TensorSpec, Tolerance
from skdeploy.engines._build import BatchProfile
from skdeploy.images.dataset import open_dataset
from skdeploy.line.export import export
from skdeploy.line.options import ExportOptions
from skdeploy.parity.compare import Subject
from skdeploy.parity.determinism import differing_bytes, rebuild, recorded_options, run_to_run
from skdeploy.parity.report import Rebuild
from skdeploy.passes.trace_options import TraceOptions
from tests.conftest import TinySpec
from tests.graphs.networks import Array, card
from tests.tiny import CARD


class Drifting(Session):
    """Answers 1, and each time ``step`` more in the first logit."""

    def __init__(self, spec: ModelSpec, step: float, profile: tuple[int, int, int] | None = None) -> None:
        self.inputs = (TensorSpec(name="input", dtype="float32", shape=("batch", *spec.input.shape)),)
        self.outputs = (TensorSpec(name="logits", dtype="float32", shape=("batch", 5)),)
        self.step, self.runs = step, 0
        if profile is not None:
            self.profile = {"input": tuple((size, *spec.input.shape) for size in profile)}

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        logits = np.ones((len(feeds["input"]), 5), np.float32)
        logits[:, 0] += np.float32(self.step * self.runs)
        self.runs += 1
        return {"logits": logits}


@pytest.fixture
def tiny(tiny_spec: TinySpec) -> ModelSpec:
    return card(tiny_spec(2))


WHO = Subject("x", "test", Precision.FP32, Tolerance(max_rel_error=1e-2, min_cosine=0.9, min_sqnr_db=0))
PIXELS = np.zeros((3, 20, 24, 3), np.uint8)


def test_other_bits_are_counted_and_within_the_tolerance_recorded(tiny: ModelSpec) -> None:
    found = run_to_run(Drifting(tiny, 1e-3), PIXELS, tiny, WHO)
    assert (found.images, found.values, found.differing, found.verdict) == (3, 15, 3, "pass")
    assert found.max_rel_error == pytest.approx(1e-3, rel=1e-4)  # float32


@pytest.mark.parametrize("step", [0.1, np.nan, np.inf])
def test_runs_that_differ_by_more_fail(tiny: ModelSpec, step: float) -> None:
    with np.errstate(invalid="ignore"):
        found = run_to_run(Drifting(tiny, step), PIXELS, tiny, WHO)
    assert found.verdict == "fail"
    assert "two runs of the same images differ by" in found.problem
    assert type(found).model_validate_json(found.model_dump_json()) == found


def test_a_batch_is_one_that_the_engine_takes(tiny: ModelSpec) -> None:
    few = run_to_run(Drifting(tiny, 0, (4, 8, 8)), PIXELS, tiny, WHO)
    many = run_to_run(Drifting(tiny, 0, (1, 2, 2)), PIXELS, tiny, WHO)
    assert (few.images, many.images) == (4, 2)


def test_bytes_that_differ_are_counted_one_by_one() -> None:
    assert differing_bytes(b"engine", b"engine") == 0
    assert differing_bytes(b"engine", b"enzyme") == 3
    assert differing_bytes(b"engine", b"eng") == 3
    assert differing_bytes(b"", b"") == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a TensorRT-RTX engine, which is built without a GPU, for batches of 2 to 4 and one GPU."""
    pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")
    folder = tmp_path_factory.mktemp("rebuild")
    np.savez(folder / "images.npz", images=np.random.default_rng(0).integers(0, 256, (4, 40, 44, 3), dtype=np.uint8))
    export(
        ExportOptions(
            str(CARD),
            Precision.FP16,
            output=folder / "bundle",
            trace=TraceOptions(exporter="torchscript"),
            target="tensorrt_rtx",
            profile=(2, 2, 4),
            compute_capabilities=("8.9",),
            images=folder / "images.npz",
        )
    )
    return folder


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Bundle:
    return load_bundle(Path(shutil.copytree(made / "bundle", tmp_path / "bundle")))


@pytest.fixture
def pixels(bundle: Bundle, made: Path) -> Array:
    return open_dataset(made / "images.npz").load(bundle.manifest.model)


def engine_of(bundle: Bundle) -> Artifact:
    return next(artifact for artifact in bundle.manifest.artifacts if artifact.format == "engine")


def rebuilt(bundle: Bundle, engine: Artifact, pixels: Array) -> Rebuild:
    return rebuild(bundle, engine, pixels, bundle.manifest.model.tolerance[Precision.FP16])


def test_an_engine_is_built_again_with_the_options_it_was_built_with(bundle: Bundle) -> None:
    engine = engine_of(bundle)
    options = recorded_options(bundle, engine)
    assert options.profile == BatchProfile(2, 2, 4)
    assert options.compute_capabilities == ("8.9",)


def test_two_builds_are_compared_byte_by_byte_and_nothing_is_left_behind(bundle: Bundle, pixels: Array) -> None:
    before = sorted(bundle.folder.rglob("*"))
    engine = engine_of(bundle)
    found = rebuilt(bundle, engine, pixels)
    assert sorted(bundle.folder.rglob("*")) == before
    assert found.sha256 == digest_file(bundle.folder / engine.path)
    assert (found.sha256 == found.rebuilt_sha256) == (found.differing_bytes == 0)
    # The same weights and kernels: what differs is a header's worth of bytes.  732 of 57,416,716 in SKNet-50.
    assert found.differing_bytes < 0.05 * found.size_bytes
    assert found.built_by == found.rebuilt_by
    if found.logits is None:
        assert found.verdict == "recorded"
        assert found.reason


HEADER_BYTES = 64  # left as they are: a file with another header is refused as no plan


def test_an_engine_of_another_graph_is_told_by_its_bytes(bundle: Bundle, pixels: Array) -> None:
    """The comparison can fail: the bundle's engine is exchanged for one of the same size with other weights."""
    engine = engine_of(bundle)
    path = bundle.folder / engine.path
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    content[HEADER_BYTES:] ^= 1
    path.write_bytes(content.tobytes())
    exchanged = engine.model_copy(update={"sha256": digest_file(path)})
    found = rebuilt(load_bundle(bundle.folder), exchanged, pixels)
    assert found.differing_bytes > 0.9 * found.size_bytes


def test_an_engine_whose_graph_is_gone_is_not_rebuilt(bundle: Bundle) -> None:
    engine = engine_of(bundle)
    other = engine.provenance.model_copy(update={"parents": {"model.fp16.onnx": "0" * 64}})
    with pytest.raises(
        IntegrityError, match=r"does not hold the graph that engines/tensorrt_rtx-fp16.engine was built from"
    ):
        rebuilt(bundle, engine.model_copy(update={"provenance": other}), PIXELS)


def test_a_manifest_that_does_not_say_how_is_refused(bundle: Bundle) -> None:
    engine = engine_of(bundle)
    silent = engine.provenance.model_copy(update={"options": {"compiler": "tensorrt_rtx"}})
    with pytest.raises(IntegrityError, match="does not show how"):
        recorded_options(bundle, engine.model_copy(update={"provenance": silent}))


@pytest.mark.gpu("tensorrt_rtx")
def test_logits_of_two_builds_agree_on_a_gpu(bundle: Bundle, pixels: Array) -> None:
    engine = engine_of(bundle)
    found = rebuilt(bundle, engine, pixels)
    assert found.logits is not None
    assert found.verdict == "pass"


def test_onnxruntime_repeats_its_bits(bundle: Bundle, pixels: Array) -> None:
    spec = bundle.manifest.model
    exact = WHO.tolerance.model_copy(update={"max_rel_error": 0.0})
    who = replace(WHO, tolerance=exact)
    with onnxruntime.open_session(bundle.folder / "model.fp16.onnx") as session:
        found = run_to_run(session, pixels, spec, who)
    assert (found.differing, found.verdict) == (0, "pass")

"""``skdeploy triton`` without a server: what is written, what is refused, and that nothing is ever half there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from skdeploy.core.spec import Precision
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.export import export
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions
from skdeploy.serve.triton.config import read_parameters
from skdeploy.serve.triton.served import NO_OPTIMISER
from tests.cli.conftest import Run, Snapshot
from tests.disk_limit import file_size_limit
from tests.graphs.array_networks import Pair


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture(scope="session")
def int8_beside_fp16(asked: ExportOptions, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network in INT8 with FP16 beside it. Do not change it."""
    folder = tmp_path_factory.mktemp("beside") / "bundle"
    lower = Int8Options(calibration=CalibrationOptions(images=images), fallback=Precision.FP16)
    export(replace(asked, precision=Precision.INT8, output=folder, lowering={"int8": lower}))
    return folder


def test_a_model_is_written_with_the_manifest_s_tensors_and_digests(run: Run, bundle: Path, models: Path) -> None:
    done = run("triton", bundle, "-o", models, "--instances", 2, "--json")
    assert done.code == 0, done.err
    assert done.json["models"] == ["tiny"]
    manifest = json.loads((bundle / "manifest.json").read_text())
    (recorded,) = [each for each in manifest["artifacts"] if each["path"] == "model.fp16.onnx"]
    file = models / "tiny/1/model.onnx"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == recorded["sha256"] == done.json["sha256"]
    text = (models / "tiny/config.pbtxt").read_text()
    assert read_parameters(text)["sha256.1.model.onnx"] == recorded["sha256"]
    assert read_parameters(text)["artifact.1"] == "model.fp16.onnx"
    assert '{ name: "input" data_type: TYPE_FP32 dims: [ 3, 32, 32 ] }' in text
    assert '{ name: "logits" data_type: TYPE_FP32 dims: [ 5 ] }' in text  # the card has no labels
    for line in ("max_batch_size: 32", "dynamic_batching { }", "count: 2", "latest { num_versions: 1 }"):
        assert line in text
    assert [int(size) for size in re.findall(r"batch_size: (\d+) inputs", text)] == [1, 32]
    assert "default_queue_policy" not in text  # it stalls a lone client by 0.5 s
    assert "optimization" not in text


def test_an_existing_version_and_other_models_are_not_changed(
    run: Run, bundle: Path, int8: Path, models: Path, snapshot: Snapshot
) -> None:
    assert run("triton", bundle, "-o", models).code == 0
    (models / "theirs/1").mkdir(parents=True)
    (models / "theirs/config.pbtxt").write_text('name: "theirs"')
    before = snapshot(models)
    again = run("triton", int8, "-o", models)
    assert again.code == 2
    assert "tiny/1 exists already" in again.err
    assert "--version next" in again.err
    assert snapshot(models) == before
    assert run("triton", int8, "-o", models, "--version", "next").code == 0
    after = snapshot(models)
    assert {name for name in after if name not in before} == {"tiny/2", "tiny/2/model.onnx"}
    assert {name for name in before if after[name] != before[name]} == {"tiny/config.pbtxt"}
    parameters = read_parameters((models / "tiny/config.pbtxt").read_text())
    assert [parameters[f"artifact.{version}"] for version in (1, 2)] == ["model.fp16.onnx", "model.int8.onnx"]
    for version in (1, 2):  # each version has its own digest, in the one config that they share
        content = (models / f"tiny/{version}/model.onnx").read_bytes()
        assert parameters[f"sha256.{version}.model.onnx"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--name", "theirs"], "was not written by skdeploy"),
        (["--name", "a/b"], "cannot be a model of Triton"),
        (["--name", "tiny", "--version", "2", "--backend", "python"], "another backend"),
        (["--version", "0"], "not a version"),
        (["--version", "02"], "not a version"),
        (["--max-batch", "0"], "at least 1"),
        (["--instances", "0"], "at least 1"),
        (["--instances", "100000"], "at most 1024"),
        (["--max-batch", "1000000"], "would have 3,072,000,000 values"),
        (["--backend", "pytorch"], "onnxruntime, tensorrt, python"),
        (["--backend", "tensorrt"], "it has no engine"),
        (["--kserve", "service.yaml"], "--storage-uri"),
        (["--storage-uri", "s3://a/b"], "requires --kserve"),
    ],
)
def test_what_makes_no_sense_is_refused_and_writes_nothing(
    run: Run, bundle: Path, models: Path, snapshot: Snapshot, options: list[str], said: str
) -> None:
    assert run("triton", bundle, "-o", models).code == 0
    (models / "theirs").mkdir()
    (models / "theirs/config.pbtxt").write_text('name: "theirs"')
    before = snapshot(models)
    refused = run("triton", bundle, "-o", models, *options)
    assert refused.code == 2
    assert said in refused.err
    assert snapshot(models) == before


@pytest.mark.parametrize(
    ("old", "new"), [('key: "artifact.1" value', 'key: "artifact.1 value'), ('string_value: "', 'string_value: ["')]
)
def test_a_config_that_was_changed_is_refused_and_left(
    run: Run, bundle: Path, models: Path, snapshot: Snapshot, old: str, new: str
) -> None:
    assert run("triton", bundle, "-o", models).code == 0
    path = models / "tiny/config.pbtxt"
    path.write_text(path.read_text().replace(old, new))
    before = snapshot(models)
    refused = run("triton", bundle, "-o", models, "--version", "next")
    assert refused.code == 2
    assert "was changed after skdeploy wrote it" in refused.err
    assert snapshot(models) == before


def test_another_network_under_the_same_name_is_refused(
    run: Run, bundle: Path, array_bundle: Callable[[type], Path], models: Path, snapshot: Snapshot
) -> None:
    assert run("triton", bundle, "-o", models).code == 0
    before = snapshot(models)
    refused = run("triton", array_bundle(Pair) / "bundle", "-o", models, "--name", "tiny", "--version", "next")
    assert refused.code == 2
    assert "other inputs or outputs" in refused.err
    assert snapshot(models) == before


def test_a_damaged_graph_a_wrong_manifest_and_a_failed_bundle_are_not_served(
    run: Run, bundle: Path, models: Path
) -> None:
    path, graph = bundle / "manifest.json", bundle / "model.fp16.onnx"
    text, content = path.read_text(), graph.read_bytes()
    graph.write_bytes(content[:-1] + b"!")
    assert run("triton", bundle, "-o", models).code == 9
    graph.write_bytes(content)
    path.write_text(text.replace('"name": "logits"', '"name": "logit"'))
    wrong = run("triton", bundle, "-o", models)
    assert wrong.code in (2, 9)
    assert "logit" in wrong.err
    path.write_text(text.replace('"verdict": "verified"', '"verdict": "failed"'))
    failed = run("triton", bundle, "-o", models)
    assert failed.code == 9
    assert "must not be deployed" in failed.err
    assert not (models / "tiny").exists()


def test_a_full_disk_leaves_nothing_and_the_next_run_succeeds(run: Run, bundle: Path, models: Path) -> None:
    with file_size_limit(4096):
        full = run("triton", bundle, "-o", models)
    assert full.code == 9
    assert "no space left" in full.err
    assert [each.name for each in models.iterdir()] == [".skdeploy.lock"]
    assert run("triton", bundle, "-o", models).code == 0


def test_what_a_killed_run_left_is_removed(run: Run, bundle: Path, models: Path) -> None:
    (models / ".tiny.0123.partial/1").mkdir(parents=True)
    assert run("triton", bundle, "-o", models).code == 0
    assert sorted(each.name for each in models.iterdir()) == [".skdeploy.lock", "tiny"]


def test_a_plan_of_tensorrt_rtx_is_refused_by_the_manifest(run: Run, built: Path, models: Path) -> None:
    refused = run("triton", built, "-o", models, "--backend", "tensorrt")
    assert refused.code == 2
    assert "was built by tensorrt_rtx" in refused.err
    assert "does not load" in refused.err


def test_fp16_beside_int8_turns_the_optimiser_of_onnx_runtime_off(
    run: Run, int8_beside_fp16: Path, int8: Path, models: Path
) -> None:
    done = run("triton", int8_beside_fp16, "-o", models)
    assert done.code == 0, done.err
    assert "--int8-fallback fp32" in done.out
    assert f"optimization {{ graph {{ level: {NO_OPTIMISER} }} }}" in (models / "tiny/config.pbtxt").read_text()
    for other in (("python", int8_beside_fp16), ("onnxruntime", int8)):
        assert run("triton", other[1], "-o", models, "--name", other[0], "--backend", other[0]).code == 0
        assert "optimization" not in (models / other[0] / "config.pbtxt").read_text()


def test_without_the_optimiser_int8_beside_fp16_computes_what_the_graph_says(int8_beside_fp16: Path) -> None:
    """As Triton runs it, which cannot set session.disable_quant_qdq, against a session that can."""
    feeds = {"input": np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)}
    found = []
    for level, exact in ((onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, "0"), (None, "1")):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.disable_quant_qdq", exact)
        if level is not None:
            options.graph_optimization_level = level
        path = str(int8_beside_fp16 / "model.int8.onnx")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        found.append(session.run(["logits"], feeds)[0])
    # INT8 has 256 levels: a value that is rounded the other way moves by one, and few layers add up a few of these.
    assert np.abs(found[0] - found[1]).max() <= 5 / 256 * np.abs(found[1]).max()


def test_images_are_refused_for_networks_of_arrays(
    run: Run, array_bundle: Callable[[type], Path], models: Path
) -> None:
    bundle = array_bundle(Pair) / "bundle"
    refused = run("triton", bundle, "-o", models, "--image")
    assert refused.code == 2
    assert "--image is for networks that take images" in refused.err
    assert not models.exists()
    assert run("triton", bundle, "-o", models).code == 0


def test_images_make_an_ensemble_whose_parts_are_kept_for_the_next_version(
    run: Run, bundle: Path, models: Path, snapshot: Snapshot
) -> None:
    done = run("triton", bundle, "-o", models, "--image", "--json")
    assert done.json["models"] == ["tiny", "tiny-preprocess", "tiny-images"]
    card = json.loads(read_parameters((models / "tiny-preprocess/config.pbtxt").read_text())["preprocess"])
    assert (card["height"], card["resize"], card["input"]) == (32, 36, "float32")
    before = snapshot(models)
    assert run("triton", bundle, "-o", models, "--image", "--version", "next").code == 0
    after = snapshot(models)
    assert all(after[name] == content for name, content in before.items() if name != "tiny/config.pbtxt")
    other = run("triton", bundle, "-o", models, "--image", "--version", "next", "--instances", 2)
    assert other.code == 2
    assert "other settings" in other.err
    assert snapshot(models) == after

"""``skdeploy bench`` on a tiny network that ONNX Runtime really runs; no test here depends on how fast."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skdeploy.backends import cuda
from skdeploy.bundle.folder import load_bundle
from skdeploy.bundle.receipts import read_receipts
from skdeploy.bundle.report import render_report

Run = Callable[..., Any]
QUICK = ("--seconds", "0.05", "--backend", "onnxruntime")


def test_latency_is_measured_recorded_and_shown_in_the_report(run: Run, bundle: Path) -> None:
    result = run("bench", bundle, "--batch", "1,3", "--receipt", "--json", *QUICK)
    assert result.code == 0, result.err
    (measured,) = result.json["measured"]
    assert measured["artifact"] == "model.fp16.onnx"
    rows = measured["latency"]["batches"]
    assert [row["batch"] for row in rows] == [1, 3]
    for row in rows:
        host = row["host_ms"]
        assert 0 < host["min"] <= host["p50"] <= host["p90"] <= host["p99"]
        assert row["images_per_second"] == pytest.approx(1000 * row["batch"] / host["p50"])
        assert row["device_ms"] is None
    found = load_bundle(bundle)
    (receipt,) = read_receipts(found)
    assert (receipt.kind, receipt.backend, receipt.content) == ("latency", "onnxruntime", measured["latency"])
    page = render_report(found)
    assert "Throughput by batch" in page
    assert f"{rows[1]['host_ms']['p50']:,.3f}" in page


def test_two_backends_have_two_receipts(run: Run, bundle: Path) -> None:
    artifact = ("--artifact", "torch", "--backend", "torch")
    assert run("bench", bundle, "--receipt", *QUICK).code == 0
    assert run("bench", bundle, "--receipt", "--seconds", "0.05", *artifact).code == 0
    assert {receipt.backend for receipt in read_receipts(load_bundle(bundle))} == {"onnxruntime", "torch"}


def test_an_artifact_is_compared_with_another_of_its_bundle(run: Run, bundle: Path) -> None:
    result = run("bench", bundle, "--against-artifact", "model.onnx", *QUICK)
    assert result.code == 0, result.err
    assert "95 % interval" in result.out
    assert "pairs of blocks" in result.out


def test_an_artifact_is_compared_with_that_of_another_bundle(run: Run, bundle: Path, tmp_path: Path) -> None:
    other = shutil.copytree(bundle, tmp_path / "other")
    result = run("bench", bundle, "--against", other, "--json", *QUICK)
    assert result.code == 0, result.err
    (compared,) = result.json["comparisons"]
    assert compared["against"] == f"{other}/model.fp16.onnx"
    assert compared["int8"] is None
    assert compared["ratio"]["low"] <= compared["ratio"]["ratio"] <= compared["ratio"]["high"]


@pytest.mark.parametrize(
    ("options", "code", "message", "advice"),
    [
        (("--batch", "0"), 2, "a batch of 0 has no image", "1,8,32"),
        (("--batch", "1,-8"), 2, "a batch of -8 has no image", "1,8,32"),
        (("--batch", "one"), 2, "'one' is no whole number", "1,8,32"),
        (("--batch", ""), 2, "'' is no whole number", "1,8,32"),
        (("--batch", "10000000"), 2, "GiB of inputs", "smaller --batch"),
        (("--seconds", "0"), 2, "--seconds 0: not a time", "seconds"),
        (("--seconds", "nan"), 2, "--seconds nan: not a time", "seconds"),
        (("--threads", "0"), 2, "nothing runs on no thread", "1 or more"),
        (("--backend", "tensorflow"), 2, "no backend named 'tensorflow'", "backends: torch, onnxruntime"),
        (("--artifact", "gone.onnx"), 2, "nothing to run named 'gone.onnx'", "model.fp16.onnx"),
        (("--against-artifact", "model.fp16.onnx"), 2, "would be compared with itself", "--against"),
        (("--backend", "onnxruntime", "--artifact", "torch"), 2, "does not run on onnxruntime", "torch"),
    ],
)
def test_what_makes_no_sense_is_refused(
    run: Run, exported: Path, options: tuple[str, ...], code: int, message: str, advice: str
) -> None:
    result = run("bench", exported, *options)
    assert result.code == code
    assert message in result.err
    assert advice in result.err


def test_a_backend_that_is_named_must_work(run: Run, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "devices", lambda: ())
    result = run("bench", exported, "--backend", "onnxruntime,tensorrt")
    assert result.code == 3
    assert "tensorrt does not work here" in result.err


def test_a_graph_of_a_fixed_batch_names_it(run: Run, bundle: Path) -> None:
    """The same graph with its batch fixed, and its digest recorded."""
    import hashlib

    import onnx

    path = bundle / "model.fp16.onnx"
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, path)
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    for artifact in manifest["artifacts"]:
        if artifact["path"] == path.name:
            artifact["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    result = run("bench", bundle, "--batch", "2,8", *QUICK)
    assert result.code == 2
    assert "takes batches of 2 only" in result.err
    assert "give --batch 2" in result.err


def test_an_altered_artifact_is_not_measured(run: Run, bundle: Path) -> None:
    path = bundle / "model.fp16.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    assert run("bench", bundle, *QUICK).code == 9


@pytest.mark.gpu
def test_an_engine_tells_the_devices_time_and_its_profile(run: Run, bundle: Path) -> None:
    pytest.importorskip("tensorrt", reason="needs skdeploy[tensorrt]")
    assert run("build", bundle, "--target", "tensorrt").code == 0
    result = run("bench", bundle, "--backend", "tensorrt", "--batch", "1,8", "--seconds", "0.2", "--json")
    assert result.code == 0, result.err
    for row in result.json["measured"][0]["latency"]["batches"]:
        assert 0 < row["device_ms"]["p50"] <= row["host_ms"]["p50"]
    outside = run("bench", bundle, "--backend", "tensorrt", "--batch", "4096")
    assert outside.code == 2
    assert "outside the engine's profile" in outside.err

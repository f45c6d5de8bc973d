"""``skdeploy bench`` on a tiny network that ONNX Runtime really runs; no test here depends on how fast."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import onnx
import pytest

from skdeploy.bench import measure, timing
from skdeploy.bundle.folder import load_bundle
from skdeploy.bundle.receipts import read_receipts
from skdeploy.core.significant import significant
from skdeploy.devices import cuda
from skdeploy.report.page import render_report
from tests.cli.conftest import Run, Snapshot
from tests.cli.edited import edited, forged

QUICK = ("--seconds", "0.02", "--backend", "onnxruntime")


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-up and blocks are those of tests/bench/test_timing.py; here they only have to happen."""
    monkeypatch.setattr(timing, "WARM_UP_SECONDS", 0.01)
    monkeypatch.setattr(timing, "WARM_UP_SECONDS_AT_MOST", 0.1)
    monkeypatch.setattr(timing, "BLOCK_SECONDS", 0.002)


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
    assert (receipt.kind, receipt.backend) == ("latency", "onnxruntime")
    assert receipt.content == measured["latency"] | {"comparisons": []}
    page = render_report(found)
    assert "Throughput by batch" in page
    assert significant(rows[1]["host_ms"]["p50"], 4) in page


def test_an_artifact_is_compared_with_that_of_another_bundle(run: Run, bundle: Path, tmp_path: Path) -> None:
    other = shutil.copytree(bundle, tmp_path / "other")
    result = run("bench", bundle, "--against", other, "--receipt", "--json", *QUICK)
    assert result.code == 0, result.err
    (compared,) = result.json["comparisons"]
    assert compared["against"] == f"{other}/model.fp16.onnx"
    assert compared["int8"] is None
    assert compared["ratio"]["low"] <= compared["ratio"]["ratio"] <= compared["ratio"]["high"]
    kept, others = (
        [r.content["comparisons"] for r in read_receipts(load_bundle(folder))] for folder in (bundle, other)
    )
    assert (kept, others) == ([[compared]], [[]])
    page = render_report(load_bundle(bundle))
    assert "Latency against another artifact" in page
    assert f"{compared['ratio']['ratio']:.3f} times its latency" in page


@pytest.mark.parametrize("kernels", [True, False])
def test_an_int8_graph_is_compared_with_the_fp32_graph_of_its_bundle(
    run: Run, once_int8: Path, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether this CPU has INT8 kernels that compute right is told to the code, so that both ways are tested anywhere."""
    monkeypatch.setattr("skdeploy.backends.emulation.saturates", lambda: "" if kernels else "they saturate")
    result = run("bench", once_int8, "--json", *QUICK)
    assert result.code == 0, result.err
    assert [row["artifact"] for row in result.json["measured"]] == ["model.int8.onnx", "model.onnx"]
    (compared,) = result.json["comparisons"]
    assert (compared["artifact"], compared["against"]) == ("model.int8.onnx", "model.onnx")
    session = result.json["measured"][0]["latency"]["session"]
    if kernels:
        counted = re.fullmatch(
            r"session\.qdqisint8allowed=1, INT8 kernels in (\d+) of (\d+) layers with weights", session
        )
        assert counted is not None
        assert 0 < int(counted[1]) < int(counted[2])  # the gates are FP32
    else:
        assert session == "session.disable_quant_qdq=1"
    assert "model.int8.onnx" in compared["int8"]
    assert "model.onnx" in compared["int8"]
    if kernels:
        assert re.match("INT8 (pays|does not pay) compared with FP32 on onnxruntime, batch 1", compared["int8"])
    else:
        assert compared["int8"].startswith("this does not show whether INT8 pays on onnxruntime, batch 1")


@pytest.mark.parametrize("first", ["int8", "fp16"])
def test_against_an_fp16_bundle_the_question_is_of_fp16_whichever_is_named_first(
    run: Run, once_int8: Path, exported: Path, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skdeploy.backends.emulation.saturates", lambda: "")
    one, other = (once_int8, exported) if first == "int8" else (exported, once_int8)
    result = run("bench", one, "--against", other, "--json", *QUICK)
    (compared,) = result.json["comparisons"]
    said, ratio = compared["int8"], compared["ratio"]
    assert re.match("INT8 (pays|does not pay) compared with FP16 on onnxruntime, batch 1", said)
    own = ratio["ratio"] if first == "int8" else 1 / ratio["ratio"]
    assert f"(latency {own:.3f} times" in said


def test_int8_that_onnxruntime_runs_in_fp32_is_not_called_int8(
    run: Run, once_int8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its default options do on x86, which have no INT8 kernel for signed activations."""
    monkeypatch.setattr("skdeploy.backends.emulation.saturates", lambda: "")
    monkeypatch.setattr("skdeploy.backends.onnxruntime.INT8_KERNELS", {"session.disable_quant_qdq": "1"})
    result = run("bench", once_int8, "--json", *QUICK)
    assert "INT8 kernels in 0 of" in result.json["measured"][0]["latency"]["session"]
    assert "ran without INT8 kernels (it has none for this graph)" in result.json["comparisons"][0]["int8"]


def test_two_networks_are_compared_but_nothing_is_said_of_int8(
    run: Run, once_int8: Path, exported: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(exported, tmp_path / "other"))
    with edited(other) as content:
        content["model"]["network"]["classes"] += 1  # of a network like it; what its graph computes is not asked here
    found = run("bench", once_int8, "--against", other, "--json", *QUICK)
    assert found.code == 0, found.err
    (compared,) = found.json["comparisons"]
    assert not compared["same_network"]
    assert compared["int8"] is None


def test_a_backend_that_is_named_must_work(run: Run, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "devices", lambda: ())
    result = run("bench", exported, "--backend", "onnxruntime,tensorrt")
    assert result.code == 3
    assert "tensorrt does not work here" in result.err


def test_a_graph_of_a_fixed_batch_names_it(run: Run, bundle: Path) -> None:
    path = bundle / "model.fp16.onnx"
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, path)
    forged(bundle, path.name)
    result = run("bench", bundle, "--batch", "2,8", *QUICK)
    assert result.code == 2
    assert "takes only batches of 2" in result.err
    assert "give --batch 2" in result.err


def test_interrupted_it_leaves_the_bundle_as_it_was(
    run: Run, bundle: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = measure.timed

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return timed(*arguments)

    monkeypatch.setattr(measure, "timed", interrupted)
    before = snapshot(bundle)
    result = run("bench", bundle, "--receipt", *QUICK)
    assert (result.code, result.out) == (130, "")
    assert "Traceback" not in result.err
    assert snapshot(bundle) == before


def test_a_batch_without_memory_for_it_is_refused_and_not_killed(
    run: Run, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 2 MB free, of which 64 images of 3 x 32 x 32 alone are 0.8."""
    monkeypatch.setattr("skdeploy.devices.jetson.available_bytes", lambda: 2_000_000)
    result = run("bench", exported, "--batch", "64", *QUICK)
    assert result.code == 2
    assert re.search(r"a batch of 64 of model\.fp16\.onnx needs at least \d+\.\d GB of memory, but 0\.0 GB", result.err)
    assert run("bench", exported, "--batch", "1", *QUICK).code == 0


@pytest.mark.gpu("tensorrt")
def test_an_engine_tells_the_devices_time_and_its_profile(run: Run, bundle: Path) -> None:
    assert run("build", bundle, "--target", "tensorrt").code == 0
    result = run("bench", bundle, "--backend", "tensorrt", "--batch", "1,8", "--seconds", "0.2", "--json")
    assert result.code == 0, result.err
    for row in result.json["measured"][0]["latency"]["batches"]:
        assert 0 < row["device_ms"]["p50"] <= row["host_ms"]["p50"]
    outside = run("bench", bundle, "--backend", "tensorrt", "--batch", "4096")
    assert outside.code == 2
    assert "outside the engine's profile" in outside.err

"""``skdeploy evaluate`` as a user and a CI job meet it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from skdeploy.devices import cuda
from tests.cli.conftest import Run, Snapshot
from tests.cli.edited import edited, forged
from tests.cli.evaluation_data import with_engine

no_gpu = pytest.mark.skipif(
    bool(cuda.devices()), reason="an engine that is no plan fails otherwise where there is a GPU"
)

# Saves after every batch of two artifacts, and kills itself, as nothing can catch, after so many; never after -1.
KILLED = """
import os, signal, sys
from skdeploy.accuracy import streaming
from skdeploy.accuracy.kept import Kept
left, *arguments = sys.argv[1:]
left = 2 * int(left)
real = Kept.save
def save(self, *what):
    global left
    done = real(self, *what)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
Kept.save = save
streaming.SAVE_SECONDS = 0
sys.argv = ["skdeploy", *arguments]
from skdeploy.__main__ import main
main()
"""


def test_accuracy_is_measured_and_kept_and_no_artifact_changes(
    run: Run, bundle: Path, evaluation: Path, snapshot: Snapshot
) -> None:
    before = snapshot(bundle)
    found = run("evaluate", bundle, "--data", evaluation, "--json").json
    assert [row["artifact"] for row in found["accuracies"]] == ["model.onnx", "model.fp16.onnx"]
    assert found["accuracies"][0]["top1"]["correct"] == 36
    assert np.array(found["accuracies"][0]["confusion"]).sum() == found["images"] == 40
    assert found["decision"] is None
    after = snapshot(bundle)
    assert {name: after.pop(name) for name in ("evidence", "evidence/accuracy.json")}
    assert after == before


def test_two_images_decide_nothing_and_it_says_how_many_would(run: Run, bundle: Path, evaluation: Path) -> None:
    gate = ["evaluate", bundle, "--data", evaluation, "--num-images", 2, "--max-drop", 0.5]
    result = run(*gate)
    assert result.code == 10
    assert run(*gate, "--allow-inconclusive").code == 0
    refused = run(*gate, "--json")
    assert refused.code == 10
    assert refused.json["decision"] == "inconclusive"  # one object on stdout, the error in it
    assert (refused.json["error"]["type"], refused.json["error"]["exit_code"]) == ("AccuracyError", 10)
    assert refused.json["pairs"][0]["images_to_decide"] > 1000


def test_a_budget_that_is_kept_passes_and_another_network_is_beyond_it(
    run: Run, bundle: Path, evaluation: Path, other: Path
) -> None:
    kept = run("evaluate", bundle, "--data", evaluation, "--max-drop", 20, "--json")
    assert kept.code == 0, kept.err
    assert kept.json["decision"] == "pass"
    beyond = run("evaluate", other, "--data", evaluation, "--max-drop", 20, "--against", bundle)
    assert beyond.code == 10


def test_a_killed_evaluation_goes_on_where_it_was_and_ends_the_same(
    run: Run, bundle: Path, evaluation: Path, predictions: Path
) -> None:
    expected = run("evaluate", bundle, "--data", evaluation, "--batch", 4, "--fresh", "--json").json
    for file in predictions.iterdir():
        file.unlink()
    arguments = ["evaluate", bundle, "--data", evaluation, "--batch", 4, "--json"]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, "5", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    found = run(*arguments)
    assert "interrupted after 20 of 40 images: continuing from there" in found.err
    result = found.json
    assert result["reused"] == 20
    for evaluation in (expected, result):
        del evaluation["reused"], evaluation["seconds"]
    assert result == expected


def test_two_runs_at_once_do_not_disturb_each_other(bundle: Path, evaluation: Path, predictions: Path) -> None:
    command = [sys.executable, "-c", KILLED, "-1", "evaluate", bundle, "--data", evaluation, "--batch", "2", "--json"]
    runs = [
        subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [json.loads(run.communicate(timeout=300)[0]) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert outputs[0]["accuracies"] == outputs[1]["accuracies"]
    assert [file.suffix for file in predictions.iterdir()] == [".npz", ".npz"]  # one for each artifact


@no_gpu
def test_an_engine_that_needs_a_gpu_is_named_and_the_rest_is_evaluated(
    run: Run, bundle: Path, evaluation: Path, tmp_path: Path
) -> None:
    folder = with_engine(bundle, tmp_path / "engine")
    result = run("evaluate", folder, "--data", evaluation, "--json")
    assert result.code == 0, result.err
    assert [row["artifact"] for row in result.json["accuracies"]] == ["model.onnx", "model.fp16.onnx"]
    (absent,) = result.json["not_evaluated"]
    assert absent["artifact"] == "engines/tensorrt-fp16.engine"
    assert "no GPU" in absent["reason"]
    for arguments in (["--require-engine"], ["--artifact", "engines/tensorrt-fp16.engine"]):
        required = run("evaluate", folder, "--data", evaluation, *arguments)
        assert required.code == 3
        assert "no GPU" in required.err


def test_junit_and_markdown_say_what_was_decided(run: Run, bundle: Path, evaluation: Path, tmp_path: Path) -> None:
    files = ["--junit", tmp_path / "sub/junit.xml", "--markdown", tmp_path / "summary.md"]
    gate = ["evaluate", bundle, "--data", evaluation, "--max-drop", 0.5, *files]
    assert run(*gate).code == 10  # 40 images cannot show it
    suite = ET.parse(tmp_path / "sub/junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "0")
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert "too few images to tell" in str(failure.get("message"))
    assert "- ❌ model.fp16.onnx" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert run(*gate, "--allow-inconclusive").code == 0
    suite = ET.parse(tmp_path / "sub/junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "1")
    assert "| model.onnx | onnxruntime | FP32 | 90.00 % (" in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_a_receipt_of_accuracy_holds_for_this_device_and_this_file(run: Run, bundle: Path, evaluation: Path) -> None:
    done = run("evaluate", bundle, "--data", evaluation, "--receipt")
    assert done.code == 0
    receipts = sorted((bundle / "receipts").glob("accuracy-*.json"))
    assert len(receipts) == 2  # FP32, and the graph under test
    written = json.loads(receipts[0].read_text())
    assert (written["kind"], written["verdict"]) == ("accuracy", "recorded")
    assert written["content"]["top1"]["images"] == written["content"]["images"]
    receipts[0].write_text(receipts[0].read_text().replace('"images": ', '"images": 1'))
    altered = run("verify", bundle)
    assert altered.code == 9
    assert receipts[0].name in altered.err


def test_a_bundle_that_failed_parity_is_evaluated_and_the_first_line_says_what_failed(
    run: Run, bundle: Path, evaluation: Path
) -> None:
    report = json.loads((bundle / "parity.json").read_text())
    report["comparisons"][-1] |= {"verdict": "fail", "problems": ["SQNR 8.7 dB in image 3.png, at least 10 dB"]}
    (bundle / "parity.json").write_text(json.dumps(report))
    forged(bundle, "parity.json")
    with edited(bundle) as content:
        content["verdict"] = "failed"
    text = "failed: model.fp16.onnx on onnxruntime: SQNR 8.7 dB in image 3.png, at least 10 dB"
    judged = run("evaluate", bundle, "--data", evaluation, "--max-drop", 20)
    assert judged.code == 0, judged.err  # the question was accuracy
    assert judged.out.splitlines()[0] == text
    assert run("inspect", bundle).out.splitlines()[0] == text
    refused = run("build", bundle, "--target", "tensorrt_rtx")
    assert refused.code == 9


def test_labels_in_another_order_leave_the_gate_undecided(
    run: Run, bundle: Path, evaluation: Path, tmp_path: Path
) -> None:
    """0 % against 0 % is no drop: the first line says that nothing can be seen, and why."""
    with np.load(evaluation) as arrays:
        np.savez(tmp_path / "other.npz", images=arrays["images"], labels=4 - arrays["labels"])
    gate = ("evaluate", bundle, "--data", tmp_path / "other.npz", "--max-drop", 5)
    result = run(*gate)
    assert result.code == 10
    assert "cannot be judged" in result.err
    first = result.out.splitlines()[0]
    assert "accuracy undecided: model.onnx on onnxruntime is right on" in first
    assert "no better than naming the most frequent class" in first
    assert result.out.count("no better than naming") == 2  # the verdict, and the pair
    allowed = run(*gate, "--allow-inconclusive")
    assert (allowed.code, allowed.out.splitlines()[0]) == (0, first)

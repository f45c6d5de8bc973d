"""``skdeploy evaluate`` as a user and a CI job meet it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from skdeploy.bundle.folder import load_bundle
from skdeploy.core.files import digest_file
from skdeploy.devices import cuda
from skdeploy.report.ci import Check, markdown, write_junit, write_markdown
from tests.cli.conftest import QUICK
from tests.cli.evaluation_data import class_folders, colours, labelled, seen_by, with_engine

Run = Callable[..., Any]
no_gpu = pytest.mark.skipif(
    bool(cuda.devices()), reason="an engine that is no plan fails otherwise where there is a GPU"
)

# Saves after every batch, and kills itself, as nothing can catch, after so many; never after -1.
KILLED = """
import os, signal, sys
from skdeploy.accuracy import streaming
from skdeploy.accuracy.predictions import Cache
from tests.cli.conftest import QUICK
left, *arguments = sys.argv[1:]
left = int(left)
real = Cache.save
def save(self, predictions):
    global left
    done = real(self, predictions)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
Cache.save = save
streaming.SAVE_SECONDS = 0
sys.argv = ["skdeploy", *arguments]
from skdeploy.__main__ import main
main()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/skdeploy/evaluations"


@pytest.fixture(scope="session")
def data(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an evaluation.npz of 40 images, of which FP32 gets 36 right."""
    folder = tmp_path_factory.mktemp("eval")
    labelled(exported, folder / "evaluation.npz")
    return folder


def test_accuracy_is_printed_and_kept_and_no_artifact_changes(
    run: Run, bundle: Path, data: Path, snapshot: Any
) -> None:
    before = snapshot(bundle)
    result = run("evaluate", bundle, "--data", data)
    assert result.code == 0, result.err
    assert "evaluation on 40 images of evaluation.npz" in result.out
    assert "90.00 %" in result.out  # 36 of 40
    assert "model.fp16.onnx on onnxruntime drops by" in result.out
    assert "both right" in result.out
    after = snapshot(bundle)
    assert {name: after.pop(name) for name in ("evidence", "evidence/accuracy.json")}
    assert after == before


def test_json_has_all_of_it_and_nothing_else_is_on_stdout(run: Run, bundle: Path, data: Path) -> None:
    found = run("evaluate", bundle, "--data", data, "--json").json
    assert [row["artifact"] for row in found["accuracies"]] == ["model.onnx", "model.fp16.onnx"]
    assert found["accuracies"][0]["top1"]["correct"] == 36
    assert np.array(found["accuracies"][0]["confusion"]).sum() == 40
    assert found["decision"] is None
    assert found["images"] == 40


def test_two_images_decide_nothing_and_it_says_how_many_would(run: Run, bundle: Path, data: Path) -> None:
    gate = ["evaluate", bundle, "--data", data, "--num-images", 2, "--max-drop", 0.5]
    result = run(*gate)
    assert result.code == 10
    assert "not decided" in result.err
    assert "images like these would decide" not in result.err  # the noun stands before
    assert "like these would decide" in result.err
    assert "--allow-inconclusive" in result.err
    allowed = run(*gate, "--allow-inconclusive")
    assert allowed.code == 0
    assert "too few images to tell" in allowed.out
    refused = run(*gate, "--json")
    assert refused.code == 10
    assert refused.json["decision"] == "inconclusive"  # one object on stdout, the error in it
    assert refused.json["error"]["exit_code"] == 10
    assert refused.json["pairs"][0]["images_to_decide"] > 1000


def test_a_budget_that_is_kept_passes_and_another_network_is_beyond_it(
    run: Run, bundle: Path, data: Path, again: list[object], card: Path, images: Path, tmp_path: Path
) -> None:
    kept = run("evaluate", bundle, "--data", data, "--max-drop", 20, "--json")
    assert kept.code == 0, kept.err
    assert kept.json["decision"] == "pass"
    other = tmp_path / "other"
    assert run("export", card, "--seed", 3, "--images", images, *QUICK, "-o", other).code == 0
    beyond = run("evaluate", other, "--data", data, "--max-drop", 20, "--against", bundle)
    assert beyond.code == 10
    assert "out of its budget" in beyond.err
    assert "✗" in beyond.out


def test_help_says_what_too_few_images_do(run: Run) -> None:
    text = " ".join(run("evaluate", "--help").out.split())
    assert "too few to tell, 10 too, unless" in text
    assert "exit code 3" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-drop", "-1"], "--max-drop -1"),
        (["--confidence", "20"], "--confidence 20"),
        (["--artifact", "model.int8.onnx"], "nothing to run named 'model.int8.onnx'"),
        (["--require-engine"], "holds no engine"),
        (["--max-drop", "1", "--artifact", "model.onnx"], "needs two artifacts"),
    ],
)
def test_options_that_make_no_sense_are_a_usage_error(
    run: Run, bundle: Path, data: Path, arguments: list[str], message: str
) -> None:
    result = run("evaluate", bundle, "--data", data, *arguments)
    assert result.code == 2
    assert message in result.err


def test_data_without_labels_is_refused(run: Run, bundle: Path, images: Path) -> None:
    result = run("evaluate", bundle, "--data", images)
    assert result.code == 2
    assert "accuracy needs labels" in result.err


def test_class_folders_and_a_list_give_the_same(run: Run, bundle: Path, tmp_path: Path) -> None:
    images = colours(20)
    labels = seen_by(bundle, images)
    labels[0] = (labels[0] + 1) % 5
    folder = class_folders(tmp_path / "folders", images, labels)
    # a tiny network may see few classes; folders of numbers need no more
    lines = [f"folders/{label}/{index:03}.png,{label}" for index, label in enumerate(labels)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    by_folder = run("evaluate", bundle, "--data", folder, "--json").json
    by_list = run("evaluate", bundle, "--data", tmp_path / "list.txt", "--json").json
    assert by_folder["accuracies"] == by_list["accuracies"]
    assert by_folder["accuracies"][0]["top1"]["correct"] == 19


def test_classes_without_images_are_named(run: Run, bundle: Path, tmp_path: Path) -> None:
    images = colours(8)
    np.savez(tmp_path / "some.npz", images=images, labels=np.array([0, 0, 0, 0, 2, 2, 2, 2]))
    result = run("evaluate", bundle, "--data", tmp_path / "some.npz")
    assert result.code == 0
    assert "3 of 5 classes have no image, and nothing is known of them: 1, 3, 4" in result.out


def test_unreadable_images_are_named_and_limited(run: Run, bundle: Path, tmp_path: Path) -> None:
    images = colours(20)
    folder = class_folders(tmp_path / "folders", images, [0, 1] * 10)
    (folder / "1" / "003.png").write_text("no image")
    result = run("evaluate", bundle, "--data", folder)
    assert result.code == 2
    assert "1 of the first" in result.err
    assert "1/003.png" in result.err


def test_a_killed_evaluation_goes_on_where_it_was_and_ends_the_same(
    run: Run, bundle: Path, data: Path, cache: Path
) -> None:
    expected = run("evaluate", bundle, "--data", data, "--batch", 4, "--fresh", "--json").json
    for file in cache.iterdir():
        file.unlink()
    arguments = ["evaluate", bundle, "--data", data, "--batch", 4, "--json"]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, "5", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    found = run(*arguments)
    assert "interrupted after 20 of 40 images: going on from there" in found.err
    result = found.json
    assert result["reused"] == 20
    for evaluation in (expected, result):
        del evaluation["reused"], evaluation["seconds"]
    assert result == expected


def test_two_runs_at_once_do_not_disturb_each_other(bundle: Path, data: Path, cache: Path) -> None:
    command = [sys.executable, "-c", KILLED, "-1", "evaluate", bundle, "--data", data, "--batch", "2", "--json"]
    runs = [
        subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [json.loads(run.communicate(timeout=300)[0]) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert outputs[0]["accuracies"] == outputs[1]["accuracies"]
    assert [file.suffix for file in cache.iterdir()] == [".npz"]


def test_a_cache_folder_that_takes_no_files_is_said(
    run: Run, bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    result = run("evaluate", bundle, "--data", data)
    assert result.code == 0
    assert "predictions are not kept" in " ".join(result.err.split())


def test_a_cache_folder_of_somebody_else_is_said(
    run: Run, bundle: Path, data: Path, modes_bind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    monkeypatch.setenv("XDG_CACHE_HOME", str(locked))
    with modes_bind():
        result = run("evaluate", bundle, "--data", data)
    assert result.code == 0, result.err
    assert "Permission denied" in " ".join(result.err.split())
    assert not list(locked.iterdir())


@no_gpu
def test_an_engine_that_needs_a_gpu_is_named_and_the_rest_is_evaluated(
    run: Run, bundle: Path, data: Path, tmp_path: Path
) -> None:
    folder = with_engine(bundle, tmp_path / "engine")
    result = run("evaluate", folder, "--data", data, "--json")
    assert result.code == 0, result.err
    assert [row["artifact"] for row in result.json["accuracies"]] == ["model.onnx", "model.fp16.onnx"]
    (absent,) = result.json["not_evaluated"]
    assert absent["artifact"] == "engines/tensorrt-fp16.engine"
    assert "no GPU" in absent["reason"]
    text = run("evaluate", folder, "--data", data).out
    assert "not evaluated here: engines/tensorrt-fp16.engine: " in text
    assert "no GPU to run an engine on" in text
    for arguments in (["--require-engine"], ["--artifact", "engines/tensorrt-fp16.engine"]):
        required = run("evaluate", folder, "--data", data, *arguments)
        assert required.code == 3
        assert "no GPU" in required.err


def test_junit_and_markdown_say_what_was_decided(run: Run, bundle: Path, data: Path, tmp_path: Path) -> None:
    files = ["--junit", tmp_path / "sub/junit.xml", "--markdown", tmp_path / "summary.md"]
    gate = ["evaluate", bundle, "--data", data, "--max-drop", 0.5, *files]
    assert run(*gate).code == 10  # 40 images cannot show it
    suite = ET.parse(tmp_path / "sub/junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "0")
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert str(failure.get("message")).startswith("inconclusive: ")
    assert "❌ inconclusive" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert run(*gate, "--allow-inconclusive").code == 0
    suite = ET.parse(tmp_path / "sub/junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "1")
    assert "| model.onnx on onnxruntime | fp32 | 90.00 % (" in (tmp_path / "summary.md").read_text(encoding="utf-8")


HOSTILE = 'a]]><script>alert("1")</script>|\n# b & `c` \x00\x1b[31m\ud800 [x](http://y) @me $z$'


def test_hostile_names_stay_text_in_junit(tmp_path: Path) -> None:
    checks = [
        Check("g", HOSTILE, "fail", HOSTILE, HOSTILE),
        Check(HOSTILE, "n", "skip", HOSTILE),
        Check("g", "p", "pass", HOSTILE),
    ]
    write_junit(tmp_path / "junit.xml", HOSTILE, checks, 1.5)
    root = ET.parse(tmp_path / "junit.xml").getroot()  # parses: well-formed
    assert [element.tag for element in root.iter()] == [
        "testsuites", "testsuite", "testcase", "failure", "testcase", "skipped", "system-out", "testcase", "system-out",
    ]  # fmt: skip
    text = root.findtext("testsuite/testcase/failure")
    assert text is not None
    assert '<script>alert("1")</script>' in text
    assert "\x00" not in text
    assert "\x1b" not in text


def test_hostile_names_stay_text_in_markdown(tmp_path: Path) -> None:
    write_markdown(
        tmp_path / "s.md", HOSTILE, ("a", "b"), [[HOSTILE, "x"]], [Check("g", "n", "fail", HOSTILE)], [HOSTILE]
    )
    text = (tmp_path / "s.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 8  # title, blank, three of the table, blank, check, note
    for sign in ("<script", "`", "[x]", "http://", "@me", "$z", "\x1b", "\x00"):
        assert sign not in text
    assert text.splitlines()[4].count("|") == 3  # the cells' own
    assert text.count("&#60;script&#62;") == 4
    assert markdown("1. first") == "&#49;&#46; first"
    assert markdown("94.90 % (93.85 to 95.78)") == "94.90 % (93.85 to 95.78)"
    assert (
        markdown("model.fp16.onnx on onnxruntime: -0.25 to +0.25 %")
        == "model.fp16.onnx on onnxruntime: -0.25 to +0.25 %"
    )


def test_hostile_file_names_reach_both_reports_as_text(run: Run, bundle: Path, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "folders", colours(120), [0, 1] * 60)
    bad = folder / "0" / "<img src=x>|`b`\n.png"
    bad.write_text("no image")
    summary = tmp_path / "summary.md"
    result = run("evaluate", bundle, "--data", folder, "--markdown", summary, "--junit", tmp_path / "junit.xml")
    assert result.code == 0, result.err
    text = summary.read_text(encoding="utf-8")
    assert "1 images cannot be read" in text
    assert "&#60;img src=x&#62;&#124;&#96;b&#96;" in text
    ET.parse(tmp_path / "junit.xml")


def test_nothing_heavy_is_imported_for_help() -> None:
    check = (
        "import sys, skdeploy.cli.evaluate, skdeploy.cli.compare, skdeploy.cli.predict\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'scipy', 'PIL', 'rich.table'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60, env=environment)


def test_the_error_of_a_failed_gate_is_inside_the_one_json_object(run: Run, bundle: Path, data: Path) -> None:
    result = run("evaluate", bundle, "--data", data, "--max-drop", 0, "--json")
    assert result.code == 10
    assert json.loads(result.out)["error"]["type"] == "AccuracyError"


def test_a_receipt_of_accuracy_holds_for_this_device_and_this_file(run: Run, bundle: Path, data: Path) -> None:
    done = run("evaluate", bundle, "--data", data, "--receipt")
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
    run: Run, bundle: Path, data: Path
) -> None:
    found = load_bundle(bundle)
    report = json.loads((bundle / "parity.json").read_text())
    report["comparisons"][-1] |= {"verdict": "fail", "problems": ["SQNR 8.7 dB in image 3.png, at least 10 dB"]}
    parity = found.artifact("parity.json")
    assert parity is not None
    (bundle / "parity.json").write_text(json.dumps(report))
    sha256, size = digest_file(bundle / "parity.json"), (bundle / "parity.json").stat().st_size
    changed = parity.model_copy(update={"sha256": sha256, "size_bytes": size})
    others = tuple(a for a in found.manifest.artifacts if a is not parity)
    found.save(found.manifest.model_copy(update={"artifacts": (*others, changed), "verdict": "failed"}))
    text = "failed: model.fp16.onnx on onnxruntime: SQNR 8.7 dB in image 3.png, at least 10 dB"
    judged = run("evaluate", bundle, "--data", data, "--max-drop", 20)
    assert judged.code == 0, judged.err  # the question was accuracy
    assert judged.out.splitlines()[0] == text
    assert "within the budget of 20" in judged.out
    assert run("inspect", bundle).out.splitlines()[0] == text
    assert text in run("compare", bundle, bundle, "--data", data).err
    refused = run("build", bundle, "--target", "tensorrt_rtx")
    assert refused.code == 9
    assert "must not be deployed" in refused.err

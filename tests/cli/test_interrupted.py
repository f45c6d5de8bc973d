"""Killed, out of space, or two at once: nothing is ever half, and the same command finishes the work."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from skdeploy import engines
from skdeploy.bundle.folder import load_bundle
from skdeploy.core.errors import IntegrityError, SkdeployError
from skdeploy.core.spec import Precision
from skdeploy.line.export import export
from skdeploy.line.options import ExportOptions
from skdeploy.report.progress import ConsoleProgress
from tests.cli.conftest import Run
from tests.disk_limit import file_size_limit

RTX = not engines.obstacle("tensorrt_rtx")[0]  # where it is not installed, the line has no engine to be killed in

# Imports what an export needs, once. Then, for each line of stdin, an export in a process of its own, which kills itself at a
# moment that a timer could not hit: `writes`, all of FILE is in its partial file; `renames`, FILE has its name and the manifest
# does not say so yet; `updates`, the stage tells of progress that begins with FILE. Prints how each process ended.
KILLED = """
import json, os, signal, sys
import onnxruntime, onnxscript, onnxsim, safetensors.torch, torch.onnx
import skdeploy.report.progress
from skdeploy.__main__ import main
from skdeploy.core.progress import Silent

for line in sys.stdin:
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
moment, file, *arguments = json.loads(line)
renamed = False

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def watch(event, details):  # told of each system call before it is made
    global renamed
    if event == "os.kill":
        return
    if renamed:
        die()
    if event == "os.rename" and os.fspath(details[1]).endswith("/" + file):
        if moment == "writes":
            die()
        renamed = moment == "renames"

class Progress(Silent):
    def __enter__(self):
        return self
    def __exit__(self, *_):
        pass
    def update(self, detail):
        if moment == "updates" and detail.startswith(file):
            die()

skdeploy.report.progress.ConsoleProgress = Progress
sys.addaudithook(watch)
sys.argv = ["skdeploy", *arguments]
main()
"""


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """An export with these arguments, in another process that does not live to see its end."""
    errors = tmp_path / "errors"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as exports,
    ):

        def export(*request: object) -> None:
            assert exports.stdin is not None
            assert exports.stdout is not None
            print(json.dumps([str(word) for word in request]), file=exports.stdin, flush=True)
            assert exports.stdout.readline() == f"{-signal.SIGKILL}\n", errors.read_text()

        yield export
        exports.kill()  # it has nothing to end


def partials(folder: Path) -> list[Path]:
    return list(folder.rglob("*.partial"))


def test_an_export_killed_at_any_point_leaves_nothing_half_and_goes_on(
    run: Run, card: Path, images: Path, weights: Path, tmp_path: Path, killed: Callable[..., None]
) -> None:
    folder = tmp_path / "bundle"
    inputs = ["--images", images, "--weights", weights, "--target", "tensorrt_rtx" if RTX else "onnx"]
    arguments = ["export", card, "--fp16", "--exporter", "torchscript", *inputs, "-o", folder]
    done: set[str] = set()
    for moment, file, finished in [
        ("writes", "manifest.json", set()),  # the very first: the folder holds a lock and a partial file, nothing else
        ("writes", "weights.safetensors", set()),
        ("renames", "weights.safetensors", set()),
        ("renames", "model.traced.onnx", {"weights.safetensors"}),
        ("renames", "model.fp16.onnx", {"model.traced.onnx", "model.onnx"}),
        *([("updates", "Building engine", {"model.fp16.onnx", "headroom.json"})] if RTX else []),
        (
            "writes",
            "parity.json",
            {"engines/tensorrt_rtx-fp16.engine"} if RTX else {"model.fp16.onnx", "headroom.json"},
        ),
    ]:
        killed(moment, file, *arguments)
        assert len(partials(folder)) == (moment == "writes")
        if (moment, file) == ("writes", "manifest.json"):
            assert not (folder / "manifest.json").exists()
            continue
        left = load_bundle(folder)
        done |= finished
        assert {artifact.path for artifact in left.manifest.artifacts} == done
        left.check_all()
        refused = run("verify", folder)
        assert refused.code == 9
        assert "is incomplete" in refused.err
    result = run(*arguments, "--json")
    assert result.code == 0, result.err
    assert {row["path"] for row in result.json["artifacts"] if row["reused"]} == done
    assert not partials(folder)
    assert run("verify", folder, "--images", images).code == 0


def test_a_file_that_finds_no_space_ends_an_export_and_more_space_finishes_it(
    run: Run, again: list[object], exported: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(exported, folder)
    limit = (folder / "model.onnx").stat().st_size - 1_000  # the manifest is smaller
    for path in (folder / "model.onnx", folder / "model.fp16.onnx"):
        path.unlink()
    with file_size_limit(limit):
        result = run(*again, "-o", folder)
    assert result.code == 9
    assert f"no space left to write {folder / 'model.onnx'}" in result.err
    assert "run the same command again" in result.err
    assert not partials(folder)
    assert not (folder / "model.onnx").exists()
    finished = run(*again, "-o", folder, "--json")
    assert finished.code == 0
    reused = [row["path"] for row in finished.json["artifacts"] if row["reused"]]
    assert reused[:2] == ["weights.safetensors", "model.traced.onnx"]
    assert "model.onnx" not in reused


def test_of_two_exports_into_one_folder_the_second_fails_and_the_first_is_intact(
    run: Run, asked: ExportOptions, again: list[object], bundle: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[SkdeployError] = []

    class Second(ConsoleProgress):
        """Begins while the first makes its FP16 graph anew."""

        def begin(self, stage: str) -> None:
            if stage == "half":
                with pytest.raises(IntegrityError, match="another skdeploy is writing to") as error:
                    export(replace(asked, precision=Precision.FP16, output=bundle))
                refused.append(error.value)

    monkeypatch.setattr("skdeploy.report.progress.ConsoleProgress", Second)
    result = run(*again, "--keep-fp32", "^stem", "-o", bundle)
    assert result.code == 0, result.err
    assert "wait until it ends" in refused[0].advice
    made = load_bundle(bundle)
    made.check_all()
    half = made.artifact("model.fp16.onnx")
    assert half is not None
    assert half.provenance.options == {"keep_fp32": ["^stem"]}
    assert run("verify", bundle, "--images", images).code == 0

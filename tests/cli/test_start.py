"""``start``, as a container runs it: all real on the CPU; TensorRT-RTX builds the engines, which takes no GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from skdeploy import engines
from skdeploy.bundle.folder import load_bundle
from skdeploy.core.errors import IntegrityError, UsageError
from skdeploy.core.interruption import Terminated, termination_raises
from skdeploy.core.progress import Silent
from skdeploy.devices.cuda import CudaDevice
from skdeploy.serve import device_cache, starting
from tests.cli.conftest import ModesBind, Run, Snapshot
from tests.conftest import require_backend
from tests.disk_limit import file_size_limit
from tests.notes import Notes

Start = Run
CPU = ("--backend", "onnxruntime")
CARD = CudaDevice(0, "NVIDIA L4", "8.9", 24 << 30)
RTX = "tensorrt_rtx"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def image(images: Path) -> Path:
    return images / "0.png"


@pytest.fixture
def start(run: Run, bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Start]:
    """``skdeploy start`` on the bundle, with a cache and a folder of temporary files of its own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.delenv("SKDEPLOY_BACKEND", raising=False)
    yield lambda *arguments: run("start", "--bundle", bundle, "--cache", cache, *arguments)
    assert list((tmp_path / "tmp").glob("skdeploy-start-*")) == []  # what was announced ended with the verb


def entries(cache: Path) -> list[Path]:
    return [path.parent for path in sorted(cache.glob("*/*/manifest.json"))]


def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skdeploy.devices.cuda.devices", tuple)
    monkeypatch.setattr("skdeploy.devices.cuda.driver_problem", lambda: "no NVIDIA driver")


@pytest.mark.parametrize(
    "given", [(), ("--backend", "tensorrt"), ("--backend", RTX), ("--backend", "onnxruntime-cuda")]
)
def test_without_a_gpu_it_refuses_before_anything_is_copied_or_built(
    start: Start, cache: Path, image: Path, given: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gpu(monkeypatch)
    result = start(*given, "predict", image)
    assert result.code == 3
    assert "no GPU found" in result.err
    assert "no NVIDIA driver" in result.err
    assert "--backend onnxruntime" in result.err
    assert not cache.exists()


def test_a_bundle_in_the_place_of_the_verb_is_answered_with_its_option(start: Start, bundle: Path) -> None:
    result = start(bundle, "predict")
    assert result.code == 2
    assert f"--bundle {bundle}" in result.err


def test_the_verb_runs_on_a_copy_that_the_second_start_takes_from_the_cache(
    start: Start, run: Run, bundle: Path, cache: Path, image: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(bundle)
    result = start(*CPU, "predict", image, "--json")
    assert result.code == 0
    assert "made ready" in result.err
    assert result.json == run("predict", bundle, image, "--json").json
    assert snapshot(bundle) == before
    (entry,) = entries(cache)
    assert entry.parent.name == "cpu-onnxruntime"
    load_bundle(entry).check_all()
    cached = snapshot(cache)
    monkeypatch.setenv("SKDEPLOY_BACKEND", "onnxruntime")
    again = start("predict", image)
    assert again.code == 0
    assert "from the cache" in again.err
    assert start("predict", cache / "none.png").code == 2  # the verb's own
    assert snapshot(cache) == cached


def test_a_damaged_or_unfinished_bundle_is_not_copied(start: Start, bundle: Path, cache: Path, image: Path) -> None:
    found, whole = load_bundle(bundle), load_bundle(bundle).manifest
    found.save(whole.model_copy(update={"verdict": "incomplete"}))
    unfinished = start(*CPU, "predict", image)
    assert (unfinished.code, "incomplete" in unfinished.err) == (9, True)
    found.save(whole)
    with (bundle / "model.fp16.onnx").open("ab") as file:
        file.write(b"x")
    result = start(*CPU, "predict", image)
    assert result.code == 9
    assert f"{bundle / 'model.fp16.onnx'} is not the file that the manifest describes" in result.err
    assert entries(cache) == []
    assert not list(cache.rglob("*.partial"))


@pytest.mark.parametrize("name", ["model.fp16.onnx", "manifest.json"])
def test_an_entry_that_was_altered_is_told_and_made_anew(start: Start, cache: Path, image: Path, name: str) -> None:
    right = start(*CPU, "predict", image, "--json").json
    (entry,) = entries(cache)
    (entry / name).write_bytes(b"something else")
    result = start(*CPU, "predict", image, "--json")
    assert result.code == 0
    assert "is damaged and is made again" in result.err
    assert result.json == right
    load_bundle(entry).check_all()


def test_a_cache_that_takes_no_files_is_told(start: Start, cache: Path, modes_bind: ModesBind) -> None:
    cache.mkdir(mode=0o555)
    with modes_bind():
        result = start(*CPU, "verify")
    assert result.code == 2
    assert f"cannot write to the cache {cache}" in result.err
    assert "-v engines:/cache" in result.err


def test_a_full_cache_keeps_nothing_half_written(start: Start, cache: Path, image: Path, bundle: Path) -> None:
    with file_size_limit((bundle / "model.onnx").stat().st_size // 2):
        result = start(*CPU, "predict", image)
    assert result.code == 9
    assert "free some space and start again; nothing half-written is left" in result.err
    assert [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    assert start(*CPU, "predict", image).code == 0


def test_the_leftovers_of_a_killed_start_are_removed(start: Start, cache: Path, image: Path) -> None:
    start(*CPU, "predict", image)
    (entry,) = entries(cache)
    leftover = entry.with_name(f".{entry.name}.12345.partial")
    shutil.copytree(entry, leftover)
    assert start(*CPU, "predict", image).code == 0
    assert not leftover.exists()


def test_only_entries_of_other_bundles_are_named_with_the_command_that_removes_them(
    run: Run, bundle: Path, tmp_path: Path, image: Path
) -> None:
    """It can be pasted; a bundle of the user's own in the same folder is left out."""
    cache = tmp_path / "a cache"
    asked = ("start", "--bundle", bundle, "--cache", cache, *CPU, "predict", image)
    shutil.copytree(bundle, cache / "mine" / "sknet50-fp16")
    assert "rm -r" not in run(*asked).err
    (old,) = (entry for entry in entries(cache) if entry.parent.name != "mine")
    found = load_bundle(bundle)
    found.save(found.manifest.model_copy(update={"notes": ("another",)}))
    assert f"rm -r '{old}'" in run(*asked).err
    assert len(entries(cache)) == 3


def test_help_of_a_verb_prepares_nothing(start: Start, cache: Path) -> None:
    result = start("predict", "--help")
    assert result.code == 0
    assert "Usage: skdeploy start predict" in result.out
    assert not cache.exists()


def test_the_probe_runs_what_a_start_has_made(start: Start, cache: Path, image: Path) -> None:
    early = start(*CPU, "--probe")
    assert early.code == 9
    assert "does not exist yet" in early.err
    start(*CPU, "predict", image)
    assert start(*CPU, "--probe").code == 0
    found = start(*CPU, "--probe", "--json").json
    assert found["artifact"] == "model.fp16.onnx"
    assert found["latency_ms"] > 0
    (entry,) = entries(cache)
    (entry / "model.fp16.onnx").write_bytes(b"something else")
    assert start(*CPU, "--probe").code == 9


def test_the_probe_knows_what_is_running_without_being_told(start: Start, bundle: Path, cache: Path) -> None:
    ready = starting.prepare(bundle, cache, "onnxruntime", None, Silent())
    with starting.announced(ready, Silent()):
        assert starting.running() == ready
        assert start("--probe").code == 0
    assert starting.running() is None


def test_what_a_killed_start_announced_is_not_believed(
    start: Start, bundle: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends without a word while it announces, as under SIGKILL; its entry is there and could be probed."""
    without_gpu(monkeypatch)
    ready = starting.prepare(bundle, cache, "onnxruntime", None, Silent())
    code = (
        "import os, sys, tempfile; from pathlib import Path\n"
        "from skdeploy.serve import starting; from skdeploy.core.progress import Silent\n"
        "tempfile.tempdir = sys.argv[1]\n"
        "with starting.announced(starting.Ready(Path(sys.argv[2]), sys.argv[3], 'onnxruntime', True, 0.0), Silent()):\n"
        "    os.kill(os.getpid(), 9)"
    )
    killed = [sys.executable, "-c", code, str(tmp_path / "tmp"), str(ready.folder), ready.artifact]
    assert subprocess.run(killed, check=False).returncode == -9
    (left,) = (tmp_path / "tmp").glob("skdeploy-start-*.json")
    assert starting.running() is None
    assert start("--probe").code == 3  # as if nothing had been announced
    left.unlink()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_what_another_user_announces_is_not_believed(start: Start, bundle: Path, cache: Path, tmp_path: Path) -> None:
    ready = starting.prepare(bundle, cache, "onnxruntime", None, Silent())
    with starting.announced(ready, Silent()):
        os.chown(tmp_path / "tmp" / f"skdeploy-start-{os.getuid()}.json", 65534, 65534)
        result = start("--probe")
    assert result.code == 9
    assert "belongs to another user" in result.err


def test_an_engine_is_built_once_for_a_device_and_once_more_for_another(bundle: Path, cache: Path) -> None:
    first = starting.prepare(bundle, cache, RTX, CARD, Silent())
    again = starting.prepare(bundle, cache, RTX, CARD, Silent())
    other = starting.prepare(bundle, cache, RTX, CudaDevice(0, "NVIDIA T4", "7.5", 16 << 30), Silent())
    assert (first.reused, again.reused, other.reused) == (False, True, False)
    assert first.artifact == "engines/tensorrt_rtx-fp16.engine"
    assert first.folder == again.folder != other.folder
    assert "nvidia-l4-cc8-9" in first.folder.parent.name
    assert not (bundle / "engines").exists()


def test_an_engine_that_is_not_the_recorded_one_is_never_taken(bundle: Path, cache: Path) -> None:
    ready = starting.prepare(bundle, cache, RTX, CARD, Silent())
    engine = ready.folder / ready.artifact
    engine.write_bytes(b"native code from elsewhere")
    with pytest.raises(IntegrityError, match="is not the file that the manifest describes"):
        starting.probe(starting.find(bundle, cache, RTX, CARD))
    notes = Notes()
    assert not starting.prepare(bundle, cache, RTX, CARD, notes).reused
    assert any("is damaged and is made again" in note for note in notes.notes)
    load_bundle(ready.folder).check_all()


def test_sigterm_while_building_leaves_a_cache_that_the_next_start_can_use(bundle: Path, cache: Path) -> None:
    class Stopped(Silent):
        def begin(self, stage: str) -> None:
            if stage == "build":
                os.kill(os.getpid(), 15)

    with termination_raises(), pytest.raises(Terminated):
        starting.prepare(bundle, cache, RTX, CARD, Stopped())
    with pytest.raises(UsageError, match="holds no engine"):
        starting.find(bundle, cache, RTX, CARD)
    assert not list(cache.rglob("*.partial"))
    assert not starting.prepare(bundle, cache, RTX, CARD, Silent()).reused


PREPARE = """
import sys
from pathlib import Path
from skdeploy.serve import starting
from skdeploy.devices.cuda import CudaDevice
from skdeploy.report.progress import ConsoleProgress
with ConsoleProgress() as progress:
    card = CudaDevice(0, "NVIDIA L4", "8.9", 24 << 30)
    ready = starting.prepare(Path(sys.argv[1]), Path(sys.argv[2]), "tensorrt_rtx", card, progress, wait_s=float(sys.argv[3]))
print(ready.reused, (ready.folder / ready.artifact).stat().st_mtime_ns)
"""


def test_of_two_that_start_at_once_one_builds_and_the_other_waits_and_says_so(bundle: Path, cache: Path) -> None:
    key = device_cache.device_key(RTX, starting._runtime_version(RTX), CARD, "")
    (cache / key).mkdir(parents=True)
    command = [sys.executable, "-c", PREPARE, str(bundle), str(cache), "100"]
    with FileLock(cache / key / f".{device_cache.bundle_key(load_bundle(bundle))}.lock"):  # until both are there
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        for process in both:
            assert process.stderr is not None
            assert "another process is preparing" in process.stderr.readline()
    ended = [process.communicate(timeout=100) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    said = [out.split() for out, _ in ended]
    assert sorted(reused for reused, _ in said) == ["False", "True"]
    assert said[0][1] == said[1][1]  # one file, written once


def test_the_wait_is_bounded(start: Start, cache: Path, bundle: Path, image: Path) -> None:
    start(*CPU, "predict", image)
    (entry,) = entries(cache)
    with FileLock(entry.with_name(f".{entry.name}.lock")):
        result = start(*CPU, "--wait", "0.1", "predict", image)
    assert result.code == 9
    assert "still preparing" in result.err
    assert "--wait" in result.err


@pytest.mark.parametrize(
    ("backend", "verb", "given", "line"),
    [
        ("tensorrt", "predict", ["a.png"], ["--backend", "tensorrt", "a.png"]),
        ("tensorrt", "predict", ["a.png", "--backend", "onnxruntime"], ["a.png", "--backend", "onnxruntime"]),
        ("tensorrt", "bench", ["--backend=torch"], ["--backend=torch"]),
        ("tensorrt", "verify", [], ["--require-engine"]),
        ("onnxruntime-cuda", "verify", [], ["--backend", "onnxruntime-cuda"]),
        ("onnxruntime", "verify", ["--json"], ["--json"]),
    ],
)
def test_the_verb_is_told_the_backend_unless_the_user_named_one(
    backend: str, verb: str, given: list[str], line: list[str]
) -> None:
    ready = starting.Ready(Path("entry"), "x", backend, True, 0.0)
    assert starting.verb_arguments(ready, verb, given) == [verb, "entry", *line]


def test_each_thing_that_an_engine_is_tied_to_has_a_folder_of_its_own() -> None:
    keys = {
        device_cache.device_key("tensorrt", "10.13.3", CARD, "13.0"),
        device_cache.device_key("tensorrt", "10.16.0", CARD, "13.0"),
        device_cache.device_key("tensorrt", "10.13.3", CARD, "13.2"),
        device_cache.device_key("tensorrt_rtx", "10.13.3", CARD, "13.0"),
        device_cache.device_key("tensorrt", "10.13.3", CudaDevice(0, "NVIDIA L4", "9.0", 0), "13.0"),
        device_cache.device_key("tensorrt", "10.13.3", CudaDevice(0, "NVIDIA L40", "8.9", 0), "13.0"),
        device_cache.device_key("onnxruntime", "1.32", None, ""),
    }
    assert len(keys) == 7
    assert all("/" not in key and " " not in key for key in keys)


@pytest.mark.gpu
@pytest.mark.parametrize("verb", ["predict", "verify"])
def test_on_a_gpu_the_engine_is_built_kept_and_run(
    start: Start, cache: Path, image: Path, images: Path, verb: str
) -> None:
    compiler, reason = engines.choose("auto")
    if compiler is None:
        pytest.skip(reason)
    require_backend(compiler)
    arguments = [image] if verb == "predict" else ["--images", images]
    first = start(verb, *arguments)
    assert first.code == 0, first.err
    assert "made ready" in first.err
    again = start(verb, *arguments, "--json")
    assert again.code == 0
    assert "from the cache" in again.err
    if verb == "predict":
        assert "engine" in json.dumps(again.json)
    assert start("--probe").code == 0
    (entry,) = entries(cache)
    assert list((entry / "engines").glob("*.engine"))

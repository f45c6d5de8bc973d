"""What a user gets wrong ends with its exit code, the thing at fault and what to do; and nothing is written.

One row a fault that the command line itself finds, or that is found nowhere below it; and for each check of a lower layer one
row that it is reached from here.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from skdeploy import engines
from skdeploy.bundle.folder import load_bundle
from skdeploy.core.files import write_text
from skdeploy.core.packages import install_command
from tests.cli.conftest import QUICK, ModesBind, Run, Snapshot

RTX = not engines.obstacle("tensorrt_rtx")[0]
RECIPE = shlex.quote(str(Path(__file__).parents[2] / "calibration/fashion.toml"))
CONVERT = "convert tiny.safetensors --card tiny.toml"
INT8 = "export tiny.toml --int8 --calib images --target onnx -o out"
START = "start --bundle bundle --cache cache"
ON_CPU = f"{START} --backend onnxruntime"
USAGE: tuple[tuple[str, ...], ...] = (
    ("export sknet50 --fp61", "--fp61", "--fp16"),
    ("export wrong.toml", "network.classes", "'five'"),
    ("export tiny.toml -o out --weights gone.pth", "no weights at gone.pth"),
    ("export tiny.toml -o out --weights images", "images are a folder, not a file"),
    ("export tiny.toml --weights /proc/self/mem", "cannot read /proc/self/mem: Input/output error"),
    ("export sknet50 --imgsz 225", "--imgsz 225", "use 224"),
    ("export sknet50 --imgsz -32", "--imgsz -32", "at least 1"),
    ("export tiny.toml --fp16 --int8", "--fp16 and --int8 cannot be used together"),
    ("export tiny.toml --int8", "INT8 needs images or samples to calibrate on"),
    ("export tiny.toml --fp16 --calib images", "leave it out, or export with --int8"),
    ("export tiny.toml --max-batch 4", "those left out default to 1, 8 and 32"),
    ("export tiny.toml --fp16 --keep-fp32 (", "--keep-fp32 '(' is not a regular expression"),
    ("export tiny.toml --batch 10000000 --target onnx -o out", "would have 30,720,000,000 values", "a smaller --batch"),
    ("export tiny.toml --opset 21", "--opset 21: must be from 19 to 20"),
    ("export tiny.toml --workspace 0", "--workspace 0"),
    ("export tiny.toml --workspace nan", "--workspace nan"),
    ("export tiny.toml --workspace inf", "--workspace inf"),
    ("export tiny.toml --target tpu", "'--target': 'tpu' is not one of"),
    ("export tiny.toml --images gone", "no images at gone"),
    ("export tiny.toml --images empty", "no images in empty"),
    ("export tiny.toml --images float.npy", "holds float32 of shape (2, 32, 32, 3)", "raw uint8"),
    ("export tiny.toml --images images -o file.txt", "file.txt is a file"),
    ("export tiny.toml --images images -o file.txt/x", "cannot write file.txt/x: Not a directory", "give another path"),
    ("export tiny.toml --images images -o mine", "mine is not empty, and is not a bundle"),
    ("export tiny.toml --images images -o /proc/bundle", "cannot write /proc/bundle"),
    (f"report bundle -o {'n' * 240}", "File name too long", "of at most 233 bytes"),
    ("triton bundle -o /proc/self", "cannot write /proc/self/.skdeploy.lock"),
    (f"{INT8} --max-drop 0.2", "--max-drop requires images with labels"),
    ("export tiny.toml --max-drop 1 --data evaluation.npz", "--fp16"),
    ("export tiny.toml --fp16 --data . --allow-inconclusive", "requires --max-drop"),
    ("export tiny.toml --for orin-nona", "did you mean orin-nano"),
    ("export tiny.toml --for all", "devices, and one is needed"),
    (f"{INT8} --data absent --max-drop 1", "absent: No such file or directory"),
    (f"{INT8} --calib absent", "absent: No such file or directory"),
    (f"{INT8} --calib-percentile 99", "--calib-percentile requires --calib-method percentile"),
    (f"{INT8} --calib-num 0", "--calib-num 0: must be at least 1"),
    (f"{INT8} --calib-batch 0", "--calib-batch 0: must be at least 1"),
    (f"{INT8} --allow-random-calib", "cannot be used together"),
    (f"{INT8} --ranges r.json", "cannot be used with it"),
    (f"{INT8} --int8-keep (", "is not a regular expression"),
    (f"{INT8} --legacy-calibration-cache 11.0", "11"),
    (f"{INT8} --calib {RECIPE} --calib-num 3", "set the same values"),
    ("convert gone.pth -o made/x.safetensors", "gone.pth", "No such file or directory"),
    ("convert images -o made/x.safetensors", "images", "it is a folder, not a file"),
    ("convert empty.caffemodel -o made/x.safetensors", "empty.caffemodel is empty"),
    ("convert file.txt -o made/x.safetensors", "file.txt", "not a safetensors file, a PyTorch"),
    ("convert tiny.safetensors -o made/x.safetensors", "is in skdeploy's own layout", "--card"),
    ("convert tiny.safetensors --card gone.toml -o made/x.safetensors", "no card at gone.toml"),
    (CONVERT, "--output"),
    (f"{CONVERT} -o out.pth", "does not end in .safetensors"),
    (f"{CONVERT} -o .", "does not end in .safetensors"),
    (f"{CONVERT} -o file.txt/x.safetensors", "cannot write file.txt/x.safetensors"),
    (f"{CONVERT} -o folder.safetensors --force", "folder.safetensors: it is a folder"),
    (f"{CONVERT} -o other.safetensors", "other.safetensors already exists", "--force"),
    ("init bundle/model.onnx -o file.txt", "file.txt: a card's name must end in .toml"),
    ("inspect gone", "no file or bundle at gone"),
    ("inspect file.txt", "file.txt is not a kind of file that skdeploy knows", ".safetensors"),
    ("inspect bundle/model.onnx --engine", "--engine needs a bundle"),
    ("inspect bundle --layers", "add --engine"),
    ("inspect bundle --engine", "holds no engine", "skdeploy build"),
    ("verify bundle/model.onnx", "give its bundle, bundle"),
    ("verify bundle --weights tiny.safetensors", "--weights"),
    ("verify bundle --suite snow", "there is no suite 'snow'", "tiny-contrast"),
    ("verify bundle --save-repro repro", "--blame"),
    ("verify bundle --images images --num-images 0", "--num-images to 1 or more"),
    ("verify bundle --images images --require-engine", "holds no engine, but --require-engine needs one"),
    ("verify bundle --images images --rebuild", "holds no engine, but --rebuild needs one"),
    ("verify bundle --golden float.npy", "float.npy"),
    ("verify bundle --backend onnxruntime-cuda --backend-option memory-mib=0", "memory-mib 0: must be at least 1"),
    ("predict bundle", "Missing argument"),
    ("predict bundle images/0.png file.txt", "cannot read the image file.txt"),
    ("predict bundle images/0.png empty", "no images in the folder empty"),
    ("predict bundle images/0.png --backend openvino", "--backend openvino"),
    ("predict bundle images/0.png --backend tensorrt", "holds no engine for it", "skdeploy build"),
    ("predict bundle images/0.png --backend-option device=0", "--backend-option", "--backend"),
    ("predict bundle images/0.png --backend onnxruntime --backend-option device=0", "takes no --backend-option"),
    ("evaluate bundle --data images", "accuracy needs labels"),
    ("evaluate bundle --data evaluation.npz --max-drop -1", "--max-drop -1"),
    ("evaluate bundle --data evaluation.npz --artifact torch --backend onnxruntime", "give one of the two"),
    (
        "evaluate bundle --data evaluation.npz --backend onnxruntime-tensorrt --backend-option batch=8/4/1",
        "8/4/1 is not",
    ),
    ("evaluate bundle --data evaluation.npz --baseline-drop 1", "--baseline-drop requires --baseline"),
    ("evaluate bundle --data evaluation.npz --baseline x --baseline-drop nan", "--baseline-drop nan", "a number"),
    ("evaluate bundle --data evaluation.npz --baseline x --baseline-drop inf", "--baseline-drop inf", "a number"),
    ("evaluate bundle --data evaluation.npz --baseline x --baseline-drop -1", "--baseline-drop -1", "at least 0"),
    (f"calibrate tiny.toml --calib images -o out.json --seed {10**22}", "--seed 10000000000000000000000", "from 0 to"),
    ("calibrate bundle --calib images -o out.json --weights gone.pth", "--weights does not go with bundle"),
    ("calibrate bundle --calib images -o out.json --imgsz 32", "--imgsz does not go with bundle"),
    ("evaluate bundle --data evaluation.npz --baseline absent.json", "cannot read the baseline"),
    ("evaluate classes6 --data evaluation.npz --against bundle", "has 5 classes, but model.fp16.onnx has 6"),
    ("evaluate cats --data evaluation.npz --against dogs", "class 1 is 'c' and 'b'"),
    (
        "sensitivity bundle --data images",
        "has no ranges.json: it is a bundle of fp16",
        "repeat its export with --int8 --calib DIR",
    ),
    ("sensitivity int8 --data bad.npz", "images[3] in bad.npz has label 5, but tiny has 5 classes"),
    ("sensitivity int8 --data images --num-images 0", "--num-images"),
    ("attention bundle --data gone", "no images at gone"),
    ("attention bundle --data images/0.png", "has 1 image; the experiment needs at least two"),
    ("attention bundle --data images --num-images 0", "--num-images"),
    ("attention bundle --data images --scales 0.9,2", "0.9 is not from 1 to 4"),
    ("attention bundle --data images --scales 1,two", "'two' is not a number"),
    ("attention bundle --data images --profile SK_9_9", "--profile SK_9_9: no unit has this name"),
    ("attention bundle --data images --figure a.gif", "--figure a.gif", "a.svg"),
    ("attention bundle --data images --figure /", "--figure /", "give NAME.svg"),
    ("tune int8 --data images --calib images -o /", "--output /", "give NAME.toml"),
    ("evaluate bundle --data ''", "the value of --data is empty", "may not be set"),
    ("evaluate bundle --data=", "the value of --data is empty"),
    ("inspect ''", "the word after 'inspect' is empty"),
    ("attention bundle --data images --also other", "--also other is not the same network as bundle"),
    ("attention bundle --data images --also bundle", "its graph model.fp16.onnx is already measured"),
    ("bench bundle --batch 0", "a batch needs at least 1 image", "1,8,32"),
    ("bench bundle --batch 1,-8", "a batch needs at least 1 image"),
    ("bench bundle --batch one", "'one' is not a whole number", "1,8,32"),
    ("bench bundle --batch 1,,2", "'' is not a whole number"),
    ("bench bundle --batch 10000000", "GiB for its inputs", "smaller --batch"),
    ("bench bundle --seconds 0", "--seconds 0 must be"),
    ("bench bundle --seconds nan", "--seconds nan must be"),
    ("bench bundle --threads 0", "--threads 0: must be at least 1", "leave it out"),
    ("bench bundle --threads 100000", "--threads 100000: this process may use", "or fewer"),
    ("bench bundle --backend tensorflow", "no backend named 'tensorflow'", "backends: torch, onnxruntime"),
    ("bench bundle --artifact gone.onnx", "nothing to run named 'gone.onnx'", "model.fp16.onnx"),
    ("bench bundle --against-artifact model.fp16.onnx", "would be compared with itself", "--against"),
    ("bench bundle --backend onnxruntime --artifact torch", "does not run on onnxruntime", "torch"),
    ("plan bundle", "no device is given"),
    ("plan bundle --device ornin-nano", "did you mean orin-nano"),
    ("plan bundle --device t4,", "there is no device ''"),
    ("plan bundle --device t4 --imgsz 33", "is fixed to images of 32x32, not 33x33"),
    ("plan bundle --device t4 --batch 0", "must be at least 1"),
    ("plan bundle --device t4 --batch 10000000000", "has a dimension above 2,147,483,647", "a smaller --batch"),
    ("plan bundle --device t4 --top -1", "must be at least 0"),
    ("plan gone.onnx --device t4", "cannot read"),
    ("plan file.txt --device t4", "not a bundle and not an .onnx file"),
    (f"{ON_CPU} serve", "start cannot run the verb 'serve'"),
    (ON_CPU, "no verb to run"),
    (f"{ON_CPU} --probe verify", "--probe runs no verb"),
    (f"{START} --backend torch verify", "start does not know a backend 'torch'"),
    (f"{ON_CPU} --wait -1 verify", "--wait -1: give seconds, 0 or more"),
    (f"{ON_CPU} --wait nan verify", "--wait nan: give seconds, 0 or more"),
    (f"{ON_CPU} verify --imgs x", "No such option: --imgs"),  # what the verb would refuse, before a build of minutes
    (f"{ON_CPU} predict", "Missing argument"),
)
BUILD: tuple[tuple[str, ...], ...] = (
    ("--workspace -1", "--workspace -1: must be more than 0 GiB"),
    ("--workspace nan", "--workspace nan: must be more than 0 GiB"),
    ("--tactic-memory 0", "--tactic-memory 0: must be more than 0 GiB"),
    ("--opt-batch 64", "batch profile 1/64/32 is not 1 <= min <= opt <= max"),
    ("--profile 1/8", "--profile 1/8: give three batches"),
    ("--profile a/b/c", "--profile a/b/c: give three batches"),
    ("--profile 1/8/32 --profile 1/8/32", "is given twice"),
    ("--profile 1/8/32 --opt-batch 8", "set the same values"),
    ("--opt-level 6", "optimization level 6"),
    ("--timing-cache cache.bin", "TensorRT-RTX has no timing cache"),
    ("--strip", "does not take --strip"),
    ("--version-compatible", "does not take --version-compatible"),
    ("--hardware-compatible ampere+", "does not take --hardware-compatible ampere+"),
    ("--dla-core 0", "does not take --dla-core"),
    ("--dla-fallback", "requires --dla-core"),
    ("--compute-capability ' '", "compute capability ' '"),
    ("--compute-capability 8.9 --compute-capability 8.9", "compute capabilities 8.9, 8.9: one is given twice"),
    ("--target onnx", "--target onnx makes no engine"),
)
OTHER_CODES: tuple[tuple[str, int, str], ...] = (
    ("export tiny.toml --int8 --ranges absent -o out", 6, "absent: No such file or directory"),
    ("export tiny.toml --int8 --ranges file.txt -o out", 6, "file.txt"),
    ("calibrate bundle --calib bad -o file.txt", 6, "x.png"),
    ("inspect cut.onnx", 9, "cut.onnx"),
    ("inspect stray.engine", 9, "stray.engine is not in the manifest of a bundle"),
    ("plan cut.onnx --device t4", 9, "cut.onnx"),
    (f"{ON_CPU} --probe", 9, "does not exist yet"),
)
READERS = {
    "attention": "--data images",
    "bench": "--backend onnxruntime",
    "build": "--target tensorrt_rtx",
    "evaluate": "--data evaluation.npz",
    "inspect": "",
    "plan": "--device t4",
    "predict": "images/0.png",
    "report": "",
    "verify": "--images images",
}


@pytest.fixture(scope="module")
def wrong(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The desk with what is wrong beside what is right. Do not change it."""
    folder = Path(shutil.copytree(desk, tmp_path_factory.mktemp("wrong") / "desk"))
    for name in ("empty", "folder.safetensors", "bad", "mine/sub"):
        (folder / name).mkdir(parents=True)
    for name in ("file.txt", "other.safetensors", "mine/notes.txt", "mine/sub/.download.partial", "bad/x.png"):
        (folder / name).write_text("mine", encoding="utf-8")
    (folder / "empty.caffemodel").write_bytes(b"")
    (folder / "loop").symlink_to("back")
    (folder / "back").symlink_to("loop")
    card = (folder / "tiny.toml").read_text(encoding="utf-8")
    (folder / "wrong.toml").write_text(card.replace("classes = 5", 'classes = "five"'), encoding="utf-8")
    np.save(folder / "float.npy", np.zeros((2, 32, 32, 3), np.float32))
    np.savez(folder / "bad.npz", images=np.zeros((4, 36, 36, 3), np.uint8), labels=np.arange(4) + 2)
    (folder / "cut.onnx").write_bytes((folder / "bundle/model.onnx").read_bytes()[:3000])
    (folder / "stray.engine").write_bytes(b"plan")
    spec = load_bundle(folder / "bundle").manifest.model
    for name, update in {
        "cats": {"labels": ("a", "b", "c", "d", "e")},
        "dogs": {"labels": ("a", "c", "b", "d", "e")},
        "classes6": {"network": spec.network.model_copy(update={"classes": 6})},
    }.items():
        shutil.copytree(folder / "bundle", folder / name)
        changed = load_bundle(folder / name).manifest.model_copy(update={"model": spec.model_copy(update=update)})
        write_text(folder / name / "manifest.json", changed.model_dump_json(by_alias=True))
    altered = Path(shutil.copytree(folder / "bundle", folder / "altered"))
    with (altered / "model.fp16.onnx").open("r+b") as file:
        file.write(b"\1")
    found = load_bundle(shutil.copytree(folder / "bundle", folder / "incomplete"))
    found.save(found.manifest.model_copy(update={"verdict": "incomplete"}))
    return folder


def refused(run: Run, wrong: Path, snapshot: Snapshot, command: str, code: int, *words: str) -> None:
    before = snapshot(wrong)
    result = run(*shlex.split(command))
    assert result.code == code, result.err
    assert [word for word in words if word not in result.err] == [], result.err
    assert snapshot(wrong) == before


@pytest.fixture(autouse=True)
def at_the_desk(wrong: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(wrong)


@pytest.mark.parametrize("row", USAGE, ids=lambda row: row[0])
def test_a_mistake_is_named_with_what_to_do(row: tuple[str, ...], run: Run, wrong: Path, snapshot: Snapshot) -> None:
    command, *words = row
    refused(run, wrong, snapshot, command, 2, *words)


@pytest.mark.skipif(not RTX, reason="TensorRT-RTX does not build here")
@pytest.mark.parametrize("row", BUILD, ids=lambda row: row[0])
def test_what_no_engine_can_be_is_refused_before_the_build(
    row: tuple[str, ...], run: Run, wrong: Path, snapshot: Snapshot
) -> None:
    options, *words = row
    refused(run, wrong, snapshot, f"build bundle --target tensorrt_rtx {options}", 2, *words)


@pytest.mark.parametrize(("command", "code", "words"), OTHER_CODES)
def test_a_file_that_is_not_what_it_should_be_has_its_code(
    command: str, code: int, words: str, run: Run, wrong: Path, snapshot: Snapshot
) -> None:
    refused(run, wrong, snapshot, command, code, words)


@pytest.mark.parametrize("verb", READERS)
def test_a_folder_that_is_no_bundle_is_called_that(verb: str, run: Run, wrong: Path, snapshot: Snapshot) -> None:
    refused(run, wrong, snapshot, f"{verb} empty {READERS[verb]}", 2, "is not a bundle")


@pytest.mark.parametrize("verb", READERS)
def test_an_altered_artifact_is_used_by_no_verb(verb: str, run: Run, wrong: Path, snapshot: Snapshot) -> None:
    said = "altered/model.fp16.onnx is not the file that the manifest describes"
    refused(run, wrong, snapshot, f"{verb} altered {READERS[verb]}", 9, said)


@pytest.mark.parametrize("command", ["verify incomplete", "build incomplete --target tensorrt_rtx"])
def test_a_bundle_that_did_not_come_to_its_end_is_refused(
    command: str, run: Run, wrong: Path, snapshot: Snapshot
) -> None:
    refused(run, wrong, snapshot, command, 9, "incomplete")


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("onnxruntime", ("onnxruntime cannot be imported", install_command("cpu"))),
        ("skimage", ("scikit-image", "--images")),
    ],
)
def test_a_missing_package_is_named_with_what_to_install(
    missing: str, words: tuple[str, ...], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ONNX Runtime nothing would be proven, and so nothing is verified."""
    monkeypatch.setitem(sys.modules, missing, None)  # makes any import of it an ImportError
    images = () if missing == "skimage" else ("--images", "images")
    result = run("export", "tiny.toml", *QUICK, "--no-simplify", *images, "-o", tmp_path / "out")
    assert result.code == 3
    assert [word for word in words if word not in result.err] == [], result.err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("export tiny.toml --weights locked/x.safetensors", "x.safetensors: Permission denied"),
        ("export tiny.toml --images images -o closed", "cannot write closed: Permission denied"),
        ("export tiny.toml --images locked/x.npz", "x.npz: Permission denied"),
        ("export tiny.toml --images locked", "locked"),
        ("inspect locked/x.onnx", "x.onnx: Permission denied"),
        (f"{CONVERT} -o closed/x.safetensors", "cannot write closed/x.safetensors: Permission denied"),
    ],
)
def test_a_place_that_the_user_may_not_use_is_named(
    command: str,
    words: str,
    run: Run,
    wrong: Path,
    tmp_path: Path,
    modes_bind: ModesBind,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = Path(shutil.copytree(wrong, tmp_path / "desk", symlinks=True))  # one is a loop
    monkeypatch.chdir(copy)
    (copy / "locked").mkdir(mode=0)
    (copy / "closed").mkdir(mode=0o555)
    with modes_bind():
        result = run(*shlex.split(command))
    assert (result.code, words in result.err) == (2, True), result.err
    assert list((copy / "closed").iterdir()) == []


LONG = "n" * 300
NAMED = (
    "report bundle -o {}",
    "export tiny.toml --target onnx -o {}",
    "predict bundle {}",
    "evaluate bundle --data {}",
    "plan {} --device t4",
    "inspect {}",
    "verify {}",
    "triton bundle -o {}",
)


@pytest.mark.parametrize("name", [LONG, "loop"], ids=["long", "loop"])
@pytest.mark.parametrize("command", NAMED)
@pytest.mark.usefixtures("wrong")
def test_a_name_that_no_file_can_have_is_refused(command: str, name: str, run: Run) -> None:
    """``Path.exists`` raises for the one, and ``Path.resolve`` for the other."""
    ended = run(*shlex.split(command.format(name)))
    assert ended.code in (2, 9), ended.err
    assert name[:60] in ended.err
    assert "Traceback" not in ended.err

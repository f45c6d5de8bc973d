"""What a user gets wrong is answered with exit code 2, the thing at fault, why, and what to do; and nothing is written."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import QUICK

Run = Callable[..., Any]


def test_an_unknown_model_is_answered_with_the_nearest_names(run: Run) -> None:
    result = run("export", "sknt50")
    assert result.code == 2
    assert "no model named 'sknt50'" in result.err
    assert "did you mean sknet50" in result.err


def test_a_misspelt_option_is_answered_with_the_nearest_one(run: Run) -> None:
    result = run("export", "sknet50", "--fp61")
    assert result.code == 2
    assert "--fp61" in result.err
    assert "--fp16" in result.err


def test_a_card_with_a_wrong_type_names_key_and_value(run: Run, card: Path, tmp_path: Path) -> None:
    text = card.read_text(encoding="utf-8")
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(text.replace("classes = 5", 'classes = "five"'), encoding="utf-8")
    result = run("export", wrong)
    assert result.code == 2
    assert "network.classes" in result.err
    assert "'five'" in result.err


# ----- weights


def test_weights_that_are_not_there_are_named(run: Run, card: Path, tmp_path: Path) -> None:
    result = run("export", card, "--weights", tmp_path / "gone.pth", "-o", tmp_path / "out")
    assert result.code == 2
    assert f"no weights at {tmp_path / 'gone.pth'}" in result.err
    assert not (tmp_path / "out").exists()


def test_weights_that_are_a_folder_are_called_one(run: Run, card: Path, tmp_path: Path) -> None:
    result = run("export", card, "--weights", tmp_path, "-o", tmp_path / "out")
    assert result.code == 2
    assert f"{tmp_path} are a folder, not a file" in result.err


def test_weights_that_the_user_may_not_read_are_named(
    run: Run, card: Path, weights: Path, tmp_path: Path, modes_bind: Any
) -> None:
    locked = tmp_path / "locked.safetensors"
    shutil.copy(weights, locked)
    locked.chmod(0)
    with modes_bind():
        result = run("export", card, "--weights", locked)
    assert result.code == 2
    assert f"cannot read {locked}: Permission denied" in result.err


def test_weights_that_cannot_be_read_by_anyone_are_named(run: Run, card: Path) -> None:
    result = run("export", card, "--weights", "/proc/self/mem")  # address 0 is mapped in no process
    assert result.code == 2
    assert "cannot read /proc/self/mem: Input/output error" in result.err


def test_truncated_weights_stop_the_export_before_any_artifact(
    run: Run, again: list[object], weights: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:-100])
    result = run(*again, "--weights", cut, "-o", tmp_path / "out")
    assert result.code == 2
    assert f"{cut} is not a whole safetensors file" in result.err
    assert not list((tmp_path / "out").glob("*.onnx"))


def test_weights_of_another_class_count_name_both_numbers(
    run: Run, again: list[object], card: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.toml"
    other.write_text(card.read_text(encoding="utf-8").replace("classes = 5", "classes = 7"), encoding="utf-8")
    result = run(again[0], other, *again[2:], "-o", tmp_path / "out")
    assert result.code == 2
    assert "trained for 5 classes" in result.err
    assert "says 7" in result.err


def test_weights_with_a_nan_name_the_tensor(run: Run, again: list[object], weights: Path, tmp_path: Path) -> None:
    state = load_file(weights)
    state["stages.1.0.expand.conv.weight"][0, 0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    result = run(*again, "--weights", tmp_path / "nan.safetensors", "-o", tmp_path / "out")
    assert result.code == 2
    assert "NaN" in result.err
    assert "stages.1.0.expand.conv.weight" in result.err


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(run: Run, card: Path, tmp_path: Path) -> None:
    mark = tmp_path / "it ran"

    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (mark,)

    torch.save({"stem.conv.weight": Payload()}, tmp_path / "evil.pth")
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert mark.exists()  # the payload works where it is let
    mark.unlink()
    result = run("export", card, "--weights", tmp_path / "evil.pth", "-o", tmp_path / "out")
    assert result.code == 2
    assert "refused" in result.err
    assert "could run code" in result.err
    assert "weights_only" not in result.err  # torch's own message says how to read it all the same
    assert not mark.exists()


# ----- sizes and options


@pytest.mark.parametrize(
    ("size", "words"), [("225", "such as 224"), ("16", "such as 32"), ("0", "at least 1"), ("-32", "at least 1")]
)
def test_an_image_size_that_the_stride_does_not_divide_is_refused(run: Run, size: str, words: str) -> None:
    result = run("export", "sknet50", "--imgsz", size)
    assert result.code == 2
    assert f"--imgsz {size}" in result.err
    assert words in result.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fp16", "--int8"], "--fp16 and --int8 contradict"),
        (["--int8"], "INT8 needs images to calibrate on"),
        (["--batch", "4", "--max-batch", "16"], "--batch 4 fixes the batch"),
        (["--batch", "0"], "--batch 0: at least 1"),
        (["--min-batch", "0"], "batch profile 0/8/32"),
        (["--max-batch", "4"], "the default of those left out is 1, 8 and 32"),
        (["--keep-fp32", "stem"], "--keep-fp32 without --fp16"),
        (["--fp16", "--keep-fp32", "("], "is not a regular expression"),
        (["--compute-capability", "8.9", "--target", "onnx"], "not for --target onnx"),
        (["--compute-capability", "8.9", "--target", "tensorrt"], "not for --target tensorrt"),
        (["--opset", "18"], "--opset 18: from 19 to 20"),
        (["--opset", "21"], "--opset 21: from 19 to 20"),
        (["--workspace", "0"], "--workspace 0"),
        (["--workspace", "nan"], "--workspace nan"),
        (["--workspace", "inf"], "--workspace inf"),
        (["--num-images", "0"], "--num-images 0"),
        (["--target", "tpu"], "tpu"),
    ],
)
def test_options_that_contradict_or_make_no_sense_are_refused(
    run: Run, again: list[object], bundle: Path, options: list[str], words: str
) -> None:
    plain = [argument for argument in again if argument != "--fp16"]
    result = run(*plain, *options, "-o", bundle)
    assert result.code == 2
    assert words in result.err


def test_a_pattern_of_keep_fp32_that_matches_nothing_is_refused(run: Run, again: list[object], bundle: Path) -> None:
    result = run(*again, "--keep-fp32", "^no.such.module", "-o", bundle)
    assert result.code == 2
    assert "'^no.such.module' matches no module" in result.err


# ----- the output folder


def test_an_output_folder_that_is_a_file_is_refused_and_kept(run: Run, again: list[object], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    result = run(*again, "-o", file)
    assert result.code == 2
    assert f"{file} is a file" in result.err
    assert file.read_text() == "mine"


def test_an_output_folder_inside_a_file_is_refused(run: Run, again: list[object], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = run(*again, "-o", tmp_path / "file/bundle")
    assert result.code == 2
    assert f"cannot write {tmp_path / 'file/bundle'}: Not a directory" in result.err
    assert "or give another path" in result.err


def test_a_folder_of_other_things_is_refused_and_stays_as_it_was(
    run: Run, again: list[object], tmp_path: Path, snapshot: Any
) -> None:
    folder = tmp_path / "mine"
    (folder / "sub").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "sub/.download.partial").write_text("of another program")
    before = snapshot(folder)
    result = run(*again, "-o", folder)
    assert result.code == 2
    assert f"{folder} is not empty and not a bundle" in result.err
    assert snapshot(folder) == before


def test_a_folder_of_the_kernel_takes_no_bundle(run: Run, again: list[object]) -> None:
    result = run(*again, "-o", "/proc/bundle")
    assert result.code == 2
    assert "cannot write /proc/bundle" in result.err


def test_a_folder_that_the_user_may_not_write_to_is_refused(
    run: Run, tmp_path: Path, card: Path, images: Path, modes_bind: Any
) -> None:
    (tmp_path / "theirs").mkdir(mode=0o555)
    with modes_bind():
        result = run("export", card, *QUICK, "--images", images, "-o", tmp_path / "theirs")
    assert result.code == 2
    assert f"cannot write {tmp_path / 'theirs'}: Permission denied" in result.err


# ----- images


def test_images_that_are_not_there_are_named(run: Run, card: Path, tmp_path: Path) -> None:
    result = run("export", card, "--images", tmp_path / "gone")
    assert result.code == 2
    assert f"no images at {tmp_path / 'gone'}" in result.err


def test_images_in_a_folder_that_the_user_may_not_enter_are_named(
    run: Run, card: Path, tmp_path: Path, modes_bind: Any
) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    with modes_bind():
        result = run("export", card, "--images", tmp_path / "locked/x.npz")
        seen = run("inspect", tmp_path / "locked/x.onnx")
    assert result.code == seen.code == 2
    assert "x.npz: Permission denied" in result.err
    assert "x.onnx: Permission denied" in seen.err


def test_an_empty_folder_has_no_images(run: Run, card: Path, tmp_path: Path) -> None:
    result = run("export", card, "--images", tmp_path)
    assert result.code == 2
    assert f"no images in {tmp_path}" in result.err


def test_a_truncated_image_is_named(run: Run, again: list[object], images: Path, bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "damaged"))
    (folder / "2.png").write_bytes((images / "2.png").read_bytes()[:500])
    result = run(*again, "--images", folder, "-o", bundle)
    assert result.code == 2
    assert f"cannot read the image {folder / '2.png'}" in result.err


def test_a_folder_of_images_that_the_user_may_not_list_is_named(
    run: Run, card: Path, tmp_path: Path, modes_bind: Any
) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    with modes_bind():
        result = run("export", card, "--images", tmp_path / "locked")
    assert result.code == 2
    assert str(tmp_path / "locked") in result.err
    # an ordinary user is answered by the command line's check of paths; root's real user passes it
    assert "Permission denied" in result.err or "is not readable" in result.err


def test_verify_wants_one_image_at_least(run: Run, bundle: Path, images: Path) -> None:
    result = run("verify", bundle, "--images", images, "--num-images", "0")
    assert result.code == 2
    assert "--num-images 1 or more" in result.err


def test_normalised_images_are_refused(run: Run, card: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 32, 32, 3), np.float32))
    result = run("export", card, "--images", tmp_path / "x.npy")
    assert result.code == 2
    assert "holds float32 of shape (2, 32, 32, 3)" in result.err
    assert "raw uint8" in result.err


# ----- dependencies


def test_an_export_without_onnxruntime_says_what_to_install(
    run: Run, again: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # makes any import of it an ImportError
    result = run(*again, "-o", tmp_path / "out")
    assert result.code == 3
    assert "onnxruntime cannot be imported" in result.err
    assert 'pip install "skdeploy[cpu]"' in result.err


def test_an_export_that_could_prove_nothing_is_not_verified(
    run: Run, again: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    plain = [argument for argument in again if argument != "--fp16"]
    assert run(*plain, "--no-simplify", "-o", tmp_path / "out").code == 3


def test_an_export_without_scikit_image_asks_for_images(
    run: Run, card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    result = run("export", card, "--target", "onnx", "-o", tmp_path / "out")
    assert result.code == 3
    assert "scikit-image" in result.err
    assert "--images" in result.err

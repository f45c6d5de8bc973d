"""The line as a library call: what a second export does again and what it keeps, and what ends it."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from skdeploy.bundle.folder import load_bundle
from skdeploy.core.errors import ParityError, PrecisionError
from skdeploy.core.spec import Precision
from skdeploy.line.export import export
from skdeploy.line.options import ExportOptions
from skdeploy.line.stations.half import HalfOptions
from skdeploy.line.verification import VerifyOptions, verify
from skdeploy.zoo.build import initialise
from skdeploy.zoo.sknet import SKNet
from tests import tiny
from tests.conftest import FAST
from tests.tiny import CARD

ALL = {"weights.safetensors", "model.traced.onnx", "model.onnx", "model.fp16.onnx", "headroom.json", "parity.json"}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> ExportOptions:
    """The options of an FP16 export that has been made. Do not change its bundle: take ``options``."""
    folder = tmp_path_factory.mktemp("first")
    shutil.copy(CARD, folder / "tiny.toml")
    noise = np.random.default_rng(0).integers(0, 256, (4, 40, 44, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=noise)
    save_weights(folder / "tiny.safetensors", seed=3)
    options = ExportOptions(
        model=str(folder / "tiny.toml"),
        precision=Precision.FP16,
        output=folder / "bundle",
        weights=str(folder / "tiny.safetensors"),
        trace=FAST,
        target="onnx",
        images=folder / "images.npz",
    )
    made = export(options)
    assert made.reused == frozenset()
    return options


@pytest.fixture
def options(first: ExportOptions, tmp_path: Path) -> ExportOptions:
    """The same options for a copy of the bundle."""
    assert first.output is not None
    return replace(first, output=Path(shutil.copytree(first.output, tmp_path / "bundle")))


def save_weights(path: Path, *, seed: int, scale: dict[str, float] | None = None) -> None:
    network = SKNet(tiny.spec().network, 3)
    initialise(network, seed)
    state = network.state_dict()
    for key, factor in (scale or {}).items():
        state[key] = state[key] * factor
    save_file(state, path)


def edited_card(options: ExportOptions, folder: Path, old: str, new: str) -> str:
    text = Path(options.model).read_text(encoding="utf-8")
    assert text.count(old) == 1
    path = folder / "edited.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return str(path)


def files(options: ExportOptions) -> set[str]:
    return {p.relative_to(options.output).as_posix() for p in options.output.rglob("*") if p.is_file()}


def test_a_second_export_keeps_everything(options: ExportOptions) -> None:
    again = export(options)
    assert again.reused == ALL
    assert again.bundle.manifest.verdict == "verified"


def test_another_choice_of_modules_in_fp32_keeps_the_fp32_graphs(options: ExportOptions) -> None:
    again = export(replace(options, lowering={"fp16": HalfOptions(keep_fp32=("^classifier",))}))
    assert again.reused == {"weights.safetensors", "model.traced.onnx", "model.onnx"}
    half = again.bundle.artifact("model.fp16.onnx")
    kept = half.facts.dump()["kept_fp32"]
    assert isinstance(kept, dict)  # dumped facts are any JSON
    assert "--keep-fp32 ^classifier" in kept.values()


def test_another_tolerance_does_parity_alone_again(options: ExportOptions, tmp_path: Path) -> None:
    card = edited_card(options, tmp_path, "min_sqnr_db = 30.0", "min_sqnr_db = 29.0")
    assert export(replace(options, model=card)).reused == ALL - {"parity.json"}


def test_other_images_measure_again_and_keep_the_graphs(options: ExportOptions, tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", np.random.default_rng(1).integers(0, 256, (2, 36, 36, 3), dtype=np.uint8))
    again = export(replace(options, images=tmp_path / "other.npy"))
    assert again.reused == {"weights.safetensors", "model.traced.onnx", "model.onnx", "model.fp16.onnx"}
    assert again.parity.images == 2


def test_other_weights_do_everything_again(options: ExportOptions, tmp_path: Path) -> None:
    save_weights(tmp_path / "other.safetensors", seed=4)
    again = export(replace(options, weights=str(tmp_path / "other.safetensors")))
    assert again.reused == frozenset()
    assert again.bundle.manifest.weights.file == str(tmp_path / "other.safetensors")


def test_what_other_options_had_made_is_removed(options: ExportOptions) -> None:
    assert options.output is not None
    (options.output / "notes.txt").write_text("of the user")
    again = export(replace(options, precision=Precision.FP32, simplify=False))
    assert again.reused == {"weights.safetensors"}
    made = ["weights.safetensors", "model.onnx", "parity.json"]
    assert files(options) == {*made, "manifest.json", ".lock", "notes.txt"}
    assert [artifact.path for artifact in again.bundle.manifest.artifacts] == made


@pytest.mark.parametrize("name", ["weights.safetensors", "model.traced.onnx", "model.onnx", "headroom.json"])
def test_a_damaged_intermediate_is_made_again(options: ExportOptions, name: str) -> None:
    assert options.output is not None
    path = options.output / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    again = export(options)
    assert name not in again.reused
    again.bundle.check_all()
    assert verify(options.output, VerifyOptions(options.images)).report.verdict == "pass"


def test_parity_that_fails_marks_the_bundle_and_verify_fails_too(options: ExportOptions, tmp_path: Path) -> None:
    # FP16 rounds each value by 2^-11, some 60 dB down: no graph that computes in it comes near 250.
    card = edited_card(options, tmp_path, "min_sqnr_db = 30.0", "min_sqnr_db = 250.0")
    assert options.output is not None
    with pytest.raises(ParityError) as failure:
        export(replace(options, model=card))
    assert failure.value.exit_code == 8
    assert "model.fp16.onnx on onnxruntime: SQNR" in failure.value.message
    assert re.search(r"dB in \S+, at least 250 dB", failure.value.message)
    assert "[tolerance.fp16] in the card" in failure.value.message
    assert f"skdeploy verify {options.output} --blame" in failure.value.advice
    assert "model.onnx" not in failure.value.message.replace("model.fp16.onnx", "")
    assert load_bundle(options.output).manifest.verdict == "failed"
    with pytest.raises(ParityError, match="fp16"):
        verify(options.output, VerifyOptions(options.images)).check()
    with pytest.raises(ParityError):  # not taken for done the second time
        export(replace(options, model=card))
    assert export(options).bundle.manifest.verdict == "verified"


def test_a_tensor_that_leaves_fp16s_range_is_named_and_the_option_in_the_message_cures_it(
    options: ExportOptions, tmp_path: Path
) -> None:
    # The first unit's reduced map grows to some 1e5, and its branches' scale brings it back: FP32 computes the same as before.
    branches = [f"stages.0.0.sk.branches.{branch}.bn.weight" for branch in (0, 1)]
    scale = {"stages.0.0.reduce.bn.weight": 3e4} | dict.fromkeys(branches, 1 / 3e4)
    save_weights(tmp_path / "loud.safetensors", seed=3, scale=scale)
    loud = replace(options, weights=str(tmp_path / "loud.safetensors"))
    with pytest.raises(PrecisionError) as failure:
        export(loud)
    assert failure.value.exit_code == 5
    assert "stages.0.0.reduce" in failure.value.message
    assert "(overflows)" in failure.value.message
    pattern = failure.value.advice.partition("--keep-fp32 '")[2].partition("'")[0]
    assert (
        export(replace(loud, lowering={"fp16": HalfOptions(keep_fp32=(pattern,))})).bundle.manifest.verdict
        == "verified"
    )


def test_random_weights_are_noted_and_the_same_for_the_same_seed(options: ExportOptions) -> None:
    made = export(replace(options, weights=None, seed=5, precision=Precision.FP32))
    assert "random ones from seed 5" in made.bundle.manifest.notes[0]
    again = export(replace(options, weights=None, seed=5, precision=Precision.FP32))
    assert again.reused == {artifact.path for artifact in made.bundle.manifest.artifacts}

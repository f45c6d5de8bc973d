"""``skdeploy predict`` of networks that take arrays: classes where there are any, else every output as an array."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.cli.conftest import Run
from tests.graphs.array_networks import Bands, Pair, Speaker

Folder = Callable[[type], Path]


@pytest.fixture
def pair(array_bundle: Folder) -> Path:
    return array_bundle(Pair)


def alone(bundle: Path, graph: str, samples: Path) -> Any:
    """What ONNX Runtime gives for a folder of samples, without skdeploy."""
    rows = [np.load(file) for file in sorted(samples.iterdir())]
    session = onnxruntime.InferenceSession(str(bundle / graph), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: np.stack([row[name] for row in rows]) for name in rows[0].files})
    return found


def test_a_classifier_of_arrays_names_classes_of_files_folders_and_stacks(
    run: Run, array_bundle: Folder, tmp_path: Path
) -> None:
    folder = array_bundle(Bands)
    bundle, samples = folder / "bundle", folder / "samples"
    expected = alone(bundle, "model.onnx", samples).argmax(1).tolist()
    np.savez(tmp_path / "all.npz", planes=np.stack([np.load(file)["planes"] for file in sorted(samples.iterdir())]))
    for given, name in ((samples, f"{samples}/003.npz"), (tmp_path / "all.npz", f"{tmp_path}/all.npz[3]")):
        found = run("predict", bundle, given, "--json").json["images"]
        assert [row["predictions"][0]["top"][0]["number"] for row in found] == expected
        assert found[3]["image"] == name
    by = run("predict", bundle, samples / "000.npz", "--all", "--json").json["images"][0]["predictions"]
    assert [row["artifact"] for row in by] == ["model.read.onnx", "model.traced.onnx", "model.onnx", "model.fp16.onnx"]


def test_outputs_are_written_by_name_and_a_row_is_printed_for_each_sample(run: Run, pair: Path, tmp_path: Path) -> None:
    bundle, samples = pair / "bundle", pair / "samples"
    done = run("predict", bundle, samples, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert f"12 samples through model.fp16.onnx on onnxruntime, written to {tmp_path / 'out'}" in done.out
    assert sum("3x12x12: " in line for line in done.out.splitlines()) == 12
    expected = alone(bundle, "model.onnx", samples)
    for index, wanted in enumerate(expected):
        with np.load(tmp_path / "out" / f"{index:03}.npz") as content:
            assert content.files == ["out"]
            # FP16 rounds a value by up to 2^-11 in each of some ten operations
            np.testing.assert_allclose(content["out"], wanted, atol=10 * 2**-11 * float(np.abs(wanted).max()))
    again = run("predict", bundle, samples, "-o", tmp_path / "out")
    assert again.code == 2
    assert "000.npz already exists" in again.err
    assert run("predict", bundle, samples, "-o", tmp_path / "out", "--overwrite").code == 0
    inputs = run("predict", bundle, samples, "-o", samples, "--overwrite")
    assert "is one of the inputs" in inputs.err


def test_without_output_nothing_is_written_and_the_figures_are_those_of_the_arrays(run: Run, pair: Path) -> None:
    found = run("predict", pair / "bundle", pair / "samples/005.npz", "--backend", "onnxruntime", "--json").json
    expected = alone(pair / "bundle", "model.onnx", pair / "samples")[5]
    (row,) = found["samples"]
    (output,) = row["outputs"]
    assert (output["name"], output["shape"], row["written"]) == ("out", [3, 12, 12], None)
    assert output["mean"] == pytest.approx(expected.mean(), abs=0.01)  # FP16, as above, of values up to 5
    assert output["largest"] == pytest.approx(expected.max(), abs=0.03)


def test_all_samples_that_cannot_be_used_are_named_before_any_is_run(run: Run, pair: Path, tmp_path: Path) -> None:
    samples = Path(shutil.copytree(pair / "samples", tmp_path / "samples"))
    (samples / "004.npz").write_bytes(b"no archive")
    content = dict(np.load(samples / "007.npz"))
    np.savez(samples / "007.npz", **{**content, "step": np.array([0.5, 1])})  # type: ignore[arg-type]  # numpy's stub of savez
    refused = run("predict", pair / "bundle", samples, "-o", tmp_path / "out")
    assert refused.code == 2
    assert "2 of the 12 samples cannot be used" in refused.err
    assert "004.npz: cannot read" in refused.err
    assert "007.npz: step is float64, but int64 is needed" in refused.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--all"], "--all is for printing classes"),
        (["--overwrite"], "--overwrite requires --output"),
        (["--backend-option", "x=1"], "--backend-option requires --backend"),
    ],
)
def test_options_that_do_not_fit_are_refused(run: Run, pair: Path, arguments: list[str], said: str) -> None:
    refused = run("predict", pair / "bundle", pair / "samples", *arguments)
    assert refused.code == 2
    assert said in refused.err


def test_a_folder_without_samples_says_what_the_network_takes(run: Run, pair: Path, tmp_path: Path) -> None:
    refused = run("predict", pair / "bundle", tmp_path)
    assert f"no samples in the folder {tmp_path}" in refused.err
    assert "looked for .npz, .npy; pair takes before: float32[3, 12, 12]" in refused.err


def test_a_sample_that_is_shorter_than_the_usual_size_keeps_its_own(
    run: Run, array_bundle: Folder, tmp_path: Path
) -> None:
    folder = array_bundle(Speaker)
    bundle, sample = folder / "bundle", np.load(next((folder / "samples").iterdir()))["features"]
    (tmp_path / "mixed").mkdir()
    sizes = (40, 24, 24, 8, 40)  # 40 are usual, in multiples of 4; an engine would take 20 at least
    for index, frames in enumerate(sizes):
        np.savez(tmp_path / "mixed" / f"{index}.npz", features=sample[:, :frames])
    done = run("predict", bundle, tmp_path / "mixed", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    session = onnxruntime.InferenceSession(str(bundle / "model.fp16.onnx"), providers=["CPUExecutionProvider"])
    for index, frames in enumerate(sizes):
        (expected,) = session.run(["logits"], {"features": sample[None, :, :frames]})
        with np.load(tmp_path / "out" / f"{index}.npz") as content:
            np.testing.assert_allclose(content["logits"], expected[0], atol=1e-3 * float(np.abs(expected).max()))
    np.savez(tmp_path / "odd.npz", features=sample[:, :22])
    refused = run("predict", bundle, tmp_path / "odd.npz", "-o", tmp_path / "none")
    assert refused.code == 2
    assert "features has frames 22, but" in refused.err
    assert "takes multiples of 4" in refused.err
    assert not (tmp_path / "none").exists()

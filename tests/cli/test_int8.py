"""INT8 from the command line: calibrated on images or from a ranges file, within a budget, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from skdeploy.core.spec import Precision
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.export import calibrate, export
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions
from skdeploy.quant.legacy_cache import read_legacy_cache
from skdeploy.quant.ranges import load_ranges
from tests.cli.conftest import QUICK, Run, Snapshot
from tests.cli.evaluation_data import labelled


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of noise in five class folders; the tiny card has five classes."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(5).integers(0, 256, (60, 36, 36, 3), dtype=np.uint8)
    for index, pixels in enumerate(noise):
        path = folder / str(index % 5) / f"{index:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="session")
def options(asked: ExportOptions, photos: Path) -> ExportOptions:
    """What ``int8`` asks for, calibrated on the photos."""
    return replace(
        asked, precision=Precision.INT8, lowering={"int8": Int8Options(calibration=CalibrationOptions(images=photos))}
    )


@pytest.fixture(scope="session")
def once_made(options: ExportOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of these options. Do not change it: take ``made``."""
    folder = tmp_path_factory.mktemp("int8") / "bundle"
    export(replace(options, output=folder))
    return folder


@pytest.fixture
def made(once_made: Path, tmp_path: Path) -> Path:
    """A copy of it, into which another export has less to do."""
    return Path(shutil.copytree(once_made, tmp_path / "made"))


@pytest.fixture(scope="session")
def calibrated(options: ExportOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ranges file of the tiny network. Do not change it."""
    file = tmp_path_factory.mktemp("calibrated") / "tiny.ranges.json"
    calibrate(options, options.lowering["int8"].calibration, file)
    return file


@pytest.fixture
def int8(card: Path, weights: Path, images: Path) -> list[object]:
    """The arguments of an INT8 export, but for where its ranges come from."""
    return ["export", card, "--int8", *QUICK, "--images", images, "--weights", weights]


def test_calibrated_and_exported_in_one_go(run: Run, int8: list[object], photos: Path, tmp_path: Path) -> None:
    done = run(*int8, "--calib", photos, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    graph = next(row for row in done.json["artifacts"] if row["path"] == "model.int8.onnx")
    assert graph["precision"] == "int8"
    assert graph["parity"]["verdict"] == "pass"
    assert 0.5 < graph["details"]["int8_macs"] < 1
    kept = graph["details"]["kept"]
    assert {name for name, reason in kept.items() if reason == "part of a gate"} == {n for n in kept if ".gate." in n}
    assert all("channels a group" in reason for name, reason in kept.items() if ".gate." not in name)
    operators = {node.op_type for node in onnx.load(tmp_path / "out/model.int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    audit = next(row for row in done.json["artifacts"] if row["path"] == "ranges.json")["details"]["audit"]
    assert (audit["used"], audit["classes"]["covered"]) == (60, 5)


def test_the_same_export_again_finds_all_of_it_done(run: Run, int8: list[object], photos: Path, made: Path) -> None:
    asked = [*int8, "--calib", photos, "-o", made]
    again = run(*asked, "--json")
    assert again.code == 0
    assert all(row["reused"] for row in again.json["artifacts"])
    other = run(*asked, "--calib-num", 30, "--json")
    anew = {row["path"] for row in other.json["artifacts"] if not row["reused"]}
    assert anew >= {"ranges.json", "model.int8.onnx"}
    assert "model.onnx" not in anew


def test_ranges_calibrate_once_and_export_anywhere(
    run: Run, int8: list[object], calibrated: Path, once_made: Path, tmp_path: Path
) -> None:
    assert run(*int8, "--ranges", calibrated, "-o", tmp_path / "from-file").code == 0
    graphs = [(folder / "model.int8.onnx").read_bytes() for folder in (tmp_path / "from-file", once_made)]
    assert graphs[0] == graphs[1]


def test_calibrate_takes_a_bundle_and_leaves_it_alone(
    run: Run, bundle: Path, photos: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    before = snapshot(bundle)
    done = run("calibrate", bundle, "--calib", photos, "-o", tmp_path / "r.json")
    assert done.code == 0, done.err
    assert snapshot(bundle) == before
    assert load_ranges(tmp_path / "r.json").data.images == 60


def test_ranges_of_other_weights_are_refused_with_both_digests(
    run: Run, int8: list[object], other: Path, photos: Path, tmp_path: Path
) -> None:
    ranges = tmp_path / "other.json"
    calibration = run("calibrate", other, "--calib", photos, "-o", ranges, "--json")
    assert calibration.code == 0, calibration.err
    assert calibration.json["images"] == 60
    done = run(*int8, "--ranges", ranges, "-o", tmp_path / "out")
    assert done.code == 6
    assert load_ranges(ranges).model_sha256 in done.err
    assert "other weights" in done.err
    assert json.loads((tmp_path / "out/manifest.json").read_text())["verdict"] == "incomplete"


def test_a_recipe_of_another_model_is_refused(run: Run, int8: list[object], tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "calibration/fashion.toml"
    done = run(*int8, "--calib", recipe, "-o", tmp_path / "out")
    assert done.code == 6
    assert "is for sknet-fashion" in done.err


def test_noise_only_calibrates_when_it_is_asked_for_and_then_all_say_so(
    run: Run, int8: list[object], tmp_path: Path
) -> None:
    done = run(*int8, "--allow-random-calib", "--calib-num", 8, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert "random noise" in done.out
    assert "random noise" in run("inspect", tmp_path / "out").out
    assert "random noise" in run("verify", tmp_path / "out", "--images", int8[int8.index("--images") + 1]).out
    assert "random noise" in (tmp_path / "out/manifest.json").read_text()


def test_modules_stay_in_the_fallback_by_their_names(
    run: Run, int8: list[object], calibrated: Path, made: Path
) -> None:
    done = run(*int8, "--ranges", calibrated, "--int8-keep", r"^stages\.0", "-o", made, "--json")
    assert done.code == 0, done.err
    kept = next(row for row in done.json["artifacts"] if row["path"] == "model.int8.onnx")["details"]["kept"]
    assert {name for name, reason in kept.items() if "stages" in reason} == {
        name for name in kept if name.startswith("stages.0") and ".gate." not in name
    }
    typo = run(*int8, "--ranges", calibrated, "--int8-keep", "stagse", "-o", made)
    assert typo.code == 2
    assert "'stagse' matches no module" in typo.err


def test_fp32_fallback_has_no_fp16_in_it(run: Run, int8: list[object], calibrated: Path, made: Path) -> None:
    done = run(*int8, "--ranges", calibrated, "--int8-fallback", "fp32", "-o", made)
    assert done.code == 0, done.err
    graph = onnx.shape_inference.infer_shapes(onnx.load(made / "model.int8.onnx")).graph
    types = {value.type.tensor_type.elem_type for value in graph.value_info}
    types |= {constant.data_type for constant in graph.initializer}
    assert onnx.TensorProto.FLOAT16 not in types
    assert not (made / "headroom.json").exists()


def test_a_legacy_cache_comes_with_the_graph_that_it_is_for(
    run: Run, int8: list[object], photos: Path, made: Path
) -> None:
    """It is no artifact whose accuracy is measured."""
    done = run(*int8, "--calib", photos, "-o", made, "--legacy-calibration-cache", "8.5.3")
    assert done.code == 0, done.err
    text = (made / "legacy/calibration.cache").read_text()
    assert text.startswith("TRT-8503-EntropyCalibration2\n")
    graph = onnx.load(made / "legacy/model.onnx").graph
    tensors = {value.name for value in graph.input} | {name for node in graph.node for name in node.output}
    assert set(read_legacy_cache(text)) <= tensors
    manifest = json.loads((made / "manifest.json").read_text())
    weighted = next(row for row in manifest["artifacts"] if row["path"] == "model.int8.onnx")["facts"]["int8_weights"]
    read = {node.name: node.input[0] for node in graph.node}
    assert {read[name] for name in weighted} <= set(read_legacy_cache(text))
    measured = run("evaluate", made, "--data", photos, "--json").json["accuracies"]
    assert [row["artifact"] for row in measured] == ["model.onnx", "model.int8.onnx"]


def test_the_budget_decides_what_stays_in_the_fallback(
    run: Run, int8: list[object], photos: Path, made: Path, tmp_path: Path
) -> None:
    """With labels that FP32 itself gives: the network is untrained, and INT8 may only cost what rounding costs."""
    labelled(made, tmp_path / "eval.npz", count=60, wrong=0)
    done = run(
        *int8,
        "--calib",
        photos,
        "--data",
        tmp_path / "eval.npz",
        "--max-drop",
        5,
        "--allow-inconclusive",
        "-o",
        made,
        "--json",
    )
    assert done.code == 0, done.err
    mixed = json.loads((made / "mixed.json").read_text())
    assert 100 * (mixed["drop"]["lost"] - mixed["drop"]["gained"]) / mixed["drop"]["images"] <= 5

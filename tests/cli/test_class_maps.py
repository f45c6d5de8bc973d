"""Networks whose outputs are integers, from the module to masks and the report: segmentation that ends in an ArgMax, alone and
beside its logits, and a classifier that gives class numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession
from PIL import Image

from skdeploy.bundle.folder import load_bundle
from tests.cli.conftest import Run
from tests.networks import sk_unet

MODULE = "tests.networks.class_maps"
IMAGES = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of pictures and masks, pictures to calibrate with, and the card."""
    folder = tmp_path_factory.mktemp("shapes")
    masks = sk_unet.save_images(folder / "pairs" / "images", IMAGES, seed=10_000_000)
    (folder / "pairs" / "masks").mkdir()
    for number, mask in enumerate(masks):
        Image.fromarray(mask.astype(np.uint8)).save(folder / "pairs" / "masks" / f"{number:04}.png")
    sk_unet.save_images(folder / "calib", 48, seed=20_000_000)
    (folder / "card.toml").write_text(sk_unet.CARD, encoding="utf-8")
    return folder


def exported(run: Run, data: Path, bundle: Path, network: str, *options: object) -> Any:
    fast = ("--exporter", "torchscript", "--images", data / "pairs" / "images", "--output", bundle)
    return run("export", f"{MODULE}:{network}", *fast, *options)


def metrics_of(bundle: Path, artifact: str) -> dict[str, Any]:
    report = json.loads((bundle / "parity.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = next(c for c in report["comparisons"] if c["artifact"] == artifact)["metrics"]
    return found


def classes_in(bundle: Path, graph: str, pictures: Any) -> Any:
    session = InferenceSession(str(bundle / graph), providers=["CPUExecutionProvider"])
    return session.run(["output"], {"input": sk_unet.inputs_of(pictures).numpy()})[0]


def test_eight_bits_of_a_network_that_gives_nothing_but_classes(run: Run, data: Path, tmp_path: Path) -> None:
    bundle, card = tmp_path / "bundle", ("--card", data / "card.toml")
    done = exported(run, data, bundle, "class_map", *card, "--int8", "--calib", data / "calib", "--target", "onnx")
    assert done.code == 0, done.err
    assert "mIoU" in done.out
    assert "SQNR" not in done.out.partition("reference:")[0]  # nothing is floating point, so there is none
    manifest = load_bundle(bundle).manifest
    assert [str(output) for output in manifest.model.outputs] == ["output: int64[batch, 48, 48]"]
    found = metrics_of(bundle, "model.int8.onnx")
    assert found["max_rel_error"] is None
    assert 0.85 < found["figures"]["miou"] < 1  # INT8 that changes no pixel would not be INT8
    ranges = json.loads((bundle / "ranges.json").read_text(encoding="utf-8"))
    assert ranges["choice"]["scores"]  # methods were compared by the logits that no output gives

    predicted = run("predict", bundle, data / "pairs" / "images", "-o", tmp_path / "masks")
    assert predicted.code == 0, predicted.err
    pictures, truth = sk_unet.drawn(IMAGES, seed=10_000_000)
    written = np.stack([np.array(Image.open(tmp_path / "masks" / f"{n:04}.png")) for n in range(IMAGES)])
    assert np.mean(written == truth) > 0.85  # it segments, and does not only agree with itself

    judged = run("evaluate", bundle, "--data", data / "pairs", "--max-drop", "20", "--json")
    assert judged.code == 0, judged.err
    quality = judged.json
    figure = quality["artifacts"][0]["figures"][0]
    assert figure["name"] == "mIoU"
    made = classes_in(bundle, "model.onnx", pictures)
    each = [
        np.sum((made == k) & (truth == k)) / np.sum((made == k) | (truth == k)) for k in range(len(sk_unet.CLASSES))
    ]
    assert figure["value"] == pytest.approx(100 * np.mean(each))

    ranked = run("sensitivity", bundle, "--data", data / "pairs", "--num-images", "8", "--json")
    assert ranked.code == 0, ranked.err
    assert 5 < ranked.json["all_int8"]["sqnr_db"] < 300  # of the logits: a map alone has no decibels
    assert ranked.json["all_int8"]["figure"] == pytest.approx(ranked.json["fp32"]["figure"], abs=5)  # points of mIoU

    assert run("report", bundle).code == 0
    page = (bundle / "report.html").read_text(encoding="utf-8")
    assert "same decided pixels" in page


def test_logits_beside_their_map_are_both_judged(run: Run, data: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    done = exported(run, data, bundle, "logits_and_map", "--imgsz", "48", "--fp16", "--target", "onnx")
    assert done.code == 0, done.err
    model = load_bundle(bundle).manifest.model
    assert [(output.name, output.dtype) for output in model.outputs] == [("logits", "float32"), ("classes", "int64")]
    assert model.task == "segmentation"
    found = metrics_of(bundle, "model.fp16.onnx")
    assert found["min_sqnr_db"] > 40
    assert found["integers"]["classes"]["decided"] == 1


def test_a_wrong_map_beside_right_logits_fails(run: Run, data: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    assert exported(run, data, bundle, "logits_and_map", "--imgsz", "48", "--target", "onnx").code == 0
    graph = onnx.load(bundle / "model.onnx")
    (node,) = (node for node in graph.graph.node if node.op_type == "ArgMax")
    node.op_type = "ArgMin"
    (tmp_path / "wrong").mkdir()
    onnx.save(graph, tmp_path / "wrong" / "theirs.onnx")
    golden = tmp_path / "golden.npz"
    inputs = sk_unet.inputs_of(sk_unet.drawn(4, seed=10_000_000)[0]).numpy()
    session = InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    logits, classes = session.run(["logits", "classes"], {"input": inputs})
    np.savez(golden, input=inputs, logits=logits, classes=classes)
    theirs = ("--golden", golden, "--target", "onnx", "--images", data / "pairs" / "images", "--output")
    failed = run("export", tmp_path / "wrong" / "theirs.onnx", *theirs, tmp_path / "refused")
    assert failed.code == 8
    assert "mIoU" in failed.err
    assert "SQNR" not in failed.err  # the logits are right


def test_class_numbers_are_raw_and_only_those_that_are_decided_must_stay(run: Run, data: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    done = exported(run, data, bundle, "best_classes", "--imgsz", "48", "--fp16", "--target", "onnx")
    assert done.code == 0, done.err
    assert "task: raw" in done.out + done.err
    assert "equal decided values" in done.out
    found = metrics_of(bundle, "model.fp16.onnx")
    assert set(found["integers"]) == {"best", "places"}
    assert found["integers"]["best"]["values"] == IMAGES
    assert found["integers"]["places"]["values"] == 3 * IMAGES
    assert run("predict", bundle, data / "pairs" / "images", "-o", tmp_path / "out").code == 0
    with np.load(tmp_path / "out" / "0000.npz") as content:
        assert content["best"] == content["places"][0]
        assert content["best"].dtype == np.int64

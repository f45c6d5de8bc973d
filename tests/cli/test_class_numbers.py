"""Classifiers whose outputs are not logits alone: class numbers, and logits beside an embedding."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime import InferenceSession
from PIL import Image
from torch import Tensor, nn

from skdeploy.bundle.folder import load_bundle
from tests.cli.conftest import Run
from tests.networks.split_attention import one_group

SIZE, IMAGES, WRONG = 48, 60, 9
CLASSES = ("red", "green", "blue", "grey", "other")


class Numbers(nn.Module):
    """The best class alone, (N,)."""

    def __init__(self) -> None:
        super().__init__()
        self.network = one_group()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits.argmax(1)


class Heads(nn.Module):
    """An embedding, (N, 7), and logits beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.embed = one_group(), nn.Conv2d(3, 7, 5, stride=4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.embed(x)).mean((2, 3)), self.network(x)


def saved(network: nn.Module, path: Path, *outputs: str) -> Path:
    axes = {name: {0: "batch"} for name in ("image", *outputs)}
    options: dict[str, Any] = {
        "input_names": ["image"],
        "output_names": [*outputs],
        "dynamic_axes": axes,
        "dynamo": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the exporter that most files out there are made by
        torch.onnx.export(network.eval(), (torch.zeros(2, 3, SIZE, SIZE),), str(path), opset_version=17, **options)
    return path


def prepared(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """As ImageNet's preprocessing: the shorter side to 48 / 0.875, the middle, normalised."""
    side = round(SIZE / 0.875)
    first = round((side - SIZE) / 2)  # as torchvision
    resized = [np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.BILINEAR)) for each in images]
    middle = np.stack(resized)[:, first : first + SIZE, first : first + SIZE] / 255
    normal = (middle - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return normal.transpose(0, 3, 1, 2).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``numbers.onnx`` and ``heads.onnx``, photographs, and labels as the first one's FP32 sees them but for some."""
    folder = tmp_path_factory.mktemp("classes")
    torch.manual_seed(0)
    path = saved(Numbers(), folder / "numbers.onnx", "best")
    saved(Heads(), folder / "heads.onnx", "embedding", "scores")
    random = np.random.default_rng(0)
    colour = random.integers(0, 256, (IMAGES, 1, 1, 3))
    images = np.clip(colour + random.integers(-60, 60, (IMAGES, SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    (folder / "photos").mkdir()
    for number, image in enumerate(images[:32]):
        Image.fromarray(image).save(folder / "photos" / f"{number:02}.png")
    (labels,) = InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"image": prepared(images)})
    labels[:WRONG] = (labels[:WRONG] + 1) % len(CLASSES)
    np.savez(folder / "labelled.npz", images=images, labels=labels)
    (folder / "labels.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    return folder


def test_class_numbers_have_top1_a_gate_and_labels_and_no_probabilities(run: Run, files: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    how = ("--int8", "--int8-fallback", "fp32", "--calib", files / "photos", "--images", files / "photos")
    said = ("--labels", files / "labels.txt", "--assume-imagenet", "--target", "onnx", "--output", bundle)
    done = run("export", files / "numbers.onnx", *how, *said)
    assert done.code == 0, done.err
    assert "task: classification: best has class numbers, it picks one of 5, so no top-5" in done.out + done.err
    assert "same class" in done.out
    model = load_bundle(bundle).manifest.model
    assert (model.task, model.network.classes) == ("classification", 5)
    assert [str(output) for output in model.outputs] == ["best: int64[batch]"]
    ranges = json.loads((bundle / "ranges.json").read_text(encoding="utf-8"))
    assert ranges["choice"]["scores"]  # by the logits behind the ArgMax

    judged = run("evaluate", bundle, "--data", files / "labelled.npz", "--max-drop", "30", "--json")
    assert judged.code == 0, judged.err
    first, second = judged.json["accuracies"]
    assert first["top1"]["correct"] == IMAGES - WRONG
    assert first["top5"] is None
    content = np.load(files / "labelled.npz")
    session = InferenceSession(str(bundle / second["artifact"]), providers=["CPUExecutionProvider"])
    (found,) = session.run(["best"], {"input": prepared(content["images"])})
    assert second["top1"]["correct"] == int(np.sum(found == content["labels"]))
    assert judged.json["pairs"][0]["logits"] is None
    strict = run("evaluate", bundle, "--data", files / "labelled.npz", "--max-drop", "0.01")
    assert strict.code == 10, strict.out

    seen = run("predict", bundle, files / "photos" / "00.png", "--json")
    (guess,) = seen.json["images"][0]["predictions"][0]["top"]
    assert guess["probability"] is None
    assert guess["label"] == CLASSES[guess["number"]]
    shown = run("predict", bundle, files / "photos" / "00.png")
    assert guess["label"] in shown.out
    assert "%" not in shown.out

    ranked = run("sensitivity", bundle, "--data", files / "labelled.npz", "--num-images", "20", "--json")
    assert ranked.code == 0, ranked.err
    assert 5 < ranked.json["all_int8"]["sqnr_db"] < 300
    assert ranked.json["fp32"]["top1"] is not None


def test_class_numbers_need_to_know_how_many_classes_there_are(run: Run, files: Path, tmp_path: Path) -> None:
    other = ("--images", files / "photos", "--target", "onnx", "--output", tmp_path / "b")
    wrong = run("export", files / "numbers.onnx", "--classes", "7", *other)
    assert wrong.code == 2
    assert "has 5" in wrong.err
    raw = run("export", files / "numbers.onnx", "--task", "raw", *other)
    assert raw.code == 0, raw.err
    refused = run("evaluate", tmp_path / "b", "--data", files / "labelled.npz")
    assert refused.code == 2


def test_every_output_of_a_classifier_is_proven_and_one_is_the_gate(run: Run, files: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    said = ("--assume-imagenet", "--images", files / "photos", "--target", "onnx", "--output")
    done = run("export", files / "heads.onnx", *said, bundle)
    assert done.code == 0, done.err
    assert "the classes are those of scores (N, 5)" in done.out + done.err
    model = load_bundle(bundle).manifest.model
    assert [each.name for each in model.outputs] == ["embedding", "scores"]
    assert model.class_tensor.name == "scores"
    report = json.loads((bundle / "parity.json").read_text(encoding="utf-8"))
    metrics = report["comparisons"][-1]["metrics"]
    assert set(metrics["outputs"]) == {"embedding", "scores"}
    assert metrics["top1_agreement"] == 1
    assert run("report", bundle).code == 0
    page = (bundle / "report.html").read_text(encoding="utf-8")
    assert "embedding" in page
    judged = run("evaluate", bundle, "--data", files / "labelled.npz", "--json")
    assert judged.code == 0, judged.err
    assert judged.json["image_notes"] == ["the classes are those of the output scores"]
    content = np.load(files / "labelled.npz")
    session = InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    embedding, scores = session.run(["embedding", "scores"], {"input": prepared(content["images"])})
    assert judged.json["accuracies"][0]["top1"]["correct"] == int(np.sum(scores.argmax(1) == content["labels"]))

    embedding[3, 2] += 0.1  # as an author's code with another embedding would have saved it
    golden = tmp_path / "golden.npz"
    np.savez(golden, input=prepared(content["images"]), embedding=embedding, scores=scores)
    failed = run("verify", bundle, "--golden", golden)
    assert failed.code == 8
    assert "embedding: max error" in failed.err
    assert "scores: max error" not in failed.err

    chosen = run("export", files / "heads.onnx", "--outputs", "embedding,scores", *said, tmp_path / "chosen")
    assert chosen.code == 0, chosen.err
    assert load_bundle(tmp_path / "chosen").manifest.model.class_tensor.name == "embedding"

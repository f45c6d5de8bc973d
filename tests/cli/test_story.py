"""The main story: a fine-tuned checkpoint to a proven INT8 bundle for a device, in one command and without an edit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import one_hot

from skdeploy import engines
from skdeploy.bundle.folder import load_bundle
from skdeploy.checkpoints.convert import convert
from skdeploy.checkpoints.load import Network
from skdeploy.devices import cuda
from skdeploy.images.dataset import normalise, open_dataset
from skdeploy.line.options import ExportOptions
from skdeploy.line.route import route_to
from tests.checkpoints.goldens import golden
from tests.cli.conftest import QUICK, Run

NAMES = ("amber", "basil", "cedar", "dune", "ember", "fern", "grape")
SIZE = 64
STORY = (
    "export", "epoch=29.ckpt", "--int8", "--calib", "calib", "--labels", "labels.txt", "--imgsz", SIZE, "--data", "eval",
    "--max-drop", 10, "--for", "orin-nano", "--exporter", "torchscript",
)  # fmt: skip


def stripes(kind: int, random: np.random.Generator) -> Image.Image:
    """Stripes whose direction and colour tell the class, with noise."""
    y, x = np.mgrid[:80, :90]
    turn = np.pi * kind / len(NAMES) + random.normal(0, 0.05)
    wave = np.sin((x * np.cos(turn) + y * np.sin(turn)) / 3 + random.uniform(0, 6))
    colour = np.array([0.3 + 0.7 * (kind >> bit & 1) for bit in range(3)])
    pixels = 50 + (140 + 60 * wave[..., None]) * colour + random.normal(0, 20, (80, 90, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an engineer arrives with: class folders, labels, and a Lightning checkpoint of timm's skresnet18 with 7 classes.

    Fine-tuned: the classifier is fitted to the training images.
    """
    folder, random = tmp_path_factory.mktemp("author"), np.random.default_rng(0)
    for part, count in {"train": 12, "calib": 4, "eval": 16}.items():
        for kind, name in enumerate(NAMES):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                stripes(kind, random).save(folder / part / name / f"{index}.png")
    (folder / "labels.txt").write_text("\n".join(NAMES), encoding="utf-8")
    state = dict(golden("timm-skresnet18").state)
    width = state["fc.weight"].shape[1]
    # A classifier that passes the first features on: their logits are the features.
    state |= {"fc.weight": torch.eye(width), "fc.bias": torch.zeros(width)}
    torch.save(state, folder / "features.pth")
    done = convert(str(folder / "features.pth"), folder / "features.safetensors")
    spec = ExportOptions("features", image_size=(SIZE, SIZE)).applied(done.spec)
    images = open_dataset(folder / "train")
    assert images.labels is not None
    with torch.inference_mode():
        inputs = torch.from_numpy(normalise(images.load(spec), spec.preprocess))
        features = Network(spec, done.weights).module.eval()(inputs)
    labels = torch.from_numpy(images.labels.astype(np.int64))
    mean, spread = features.double().mean(0), features.double().std(0) + 1e-6
    scaled = (features.double() - mean) / spread
    targets = one_hot(labels, len(NAMES)).double() - 1 / len(NAMES)
    # Ridge regression: without the penalty the classifier amplifies rounding, as no trained network does.
    weight = torch.linalg.solve(scaled.T @ scaled + 5 * torch.eye(width).double(), scaled.T @ targets).T / spread
    bias = 1 / len(NAMES) - weight @ mean
    state |= {"fc.weight": weight.float(), "fc.bias": bias.float()}
    wrapped = {f"net.{key}": tensor for key, tensor in state.items()} | {"criterion.weight": torch.ones(len(NAMES))}
    torch.save({"state_dict": wrapped, "epoch": 29, "pytorch-lightning_version": "2.5.0"}, folder / "epoch=29.ckpt")
    return folder


def test_one_command_ends_with_the_accuracy_verdict_and_the_way_to_the_device(
    run: Run, author: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(author)
    result = run(*STORY)
    assert result.code == 0, result.err
    first, *rest = result.out.splitlines()
    assert first.startswith("verified, assuming ")  # nobody confirmed strides and dilations: said, not asked
    assert "accuracy of build/epoch-29-int8 is measured with assumed preprocessing" in result.err
    assert "criterion.weight" in result.out
    start = next(number for number, line in enumerate(rest) if line.startswith("next, on the Jetson Orin Nano 8 GB"))
    steps = rest[start : start + 6]
    assert [sum(word in step for step in steps) for word in ("docker build", "verify --receipt", "bench ")] == [1, 1, 1]
    assert rest[start + 6].startswith("estimate for the Jetson Orin Nano 8 GB")

    bundle = load_bundle(author / "build" / "epoch-29-int8")
    assert bundle.manifest.model.labels == NAMES
    assert not bundle.engines
    assert "its engine is built there" in " ".join(bundle.manifest.notes)
    found = run(*STORY, "--json").json
    fp32, int8 = (row["top1"]["accuracy"] for row in found["accuracy"]["accuracies"])
    assert fp32 > 0.5  # of 7 classes: trained, and seen with the right preprocessing
    assert int8 >= fp32 - 0.1
    assert found["verdict"]["state"] == "verified"
    assert len(found["on_the_device"]) == 7


def test_too_few_images_for_a_narrow_budget_leave_it_undecided(
    run: Run, author: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(author)
    command = (
        "export",
        "epoch=29.ckpt",
        "--fp16",
        "--imgsz",
        SIZE,
        "--data",
        "eval",
        "--max-drop",
        0.01,
        *QUICK,
        "-o",
        "narrow",
    )
    result = run(*command)
    assert result.code == 10
    assert result.out.startswith("accuracy undecided: ")
    assert "allow-inconclusive" in result.err
    assert run(*command, "--allow-inconclusive").code == 0


def test_labels_that_are_not_the_networks_end_it_before_the_long_part(
    run: Run, author: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(author)
    np.savez(tmp_path / "other.npz", images=np.zeros((9, 8, 8, 3), np.uint8), labels=np.arange(9))
    result = run("export", "epoch=29.ckpt", "--fp16", "--data", tmp_path / "other.npz", *QUICK, "-o", tmp_path / "b")
    assert result.code == 2
    assert "other.npz" in result.err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("device", "target", "capabilities", "profile"),
    [
        ("rtx-4090", "tensorrt_rtx", ("8.9",), None),
        ("T4", "tensorrt_rtx", ("7.5",), None),
        ("h100", "onnx", (), None),
        ("agx_orin", "onnx", (), None),
    ],
)
def test_a_device_decides_the_engine(
    device: str, target: str, capabilities: tuple[str, ...], profile: tuple[int, int, int] | None
) -> None:
    if cuda.devices():
        pytest.skip("a GPU in this machine may be of the device's kind, and is then used")
    route = route_to(device)
    applied = route.applied(ExportOptions("tiny"))
    assert (applied.target, applied.compute_capabilities, applied.profile) == (target, capabilities, profile)
    assert len(route.steps(Path("build/a b"))) <= 6
    assert any("'build/a b'" in step or "'a b" in step for step in route.steps(Path("build/a b")))
    own = ExportOptions("tiny", target=engines.ONNX, device=device)
    assert route.applied(own).target == engines.ONNX

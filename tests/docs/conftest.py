"""The folder in which a reader of the documentation works: small networks under the names that the pages use."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import skdeploy as sk
from skdeploy.core.files import digest_file
from skdeploy.core.spec import ModelSpec
from skdeploy.images.dataset import normalise
from skdeploy.zoo.build import build, initialise
from skdeploy.zoo.cards import read_card
from tests import tiny
from tests.checkpoints.goldens import golden
from tests.docs.blocks import ROOT, skdeploy

CLASSES = 7
LABELS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
FASHION = ROOT / "calibration/fashion"
NETS = """
from pathlib import Path
from skdeploy.zoo.build import build as build_network, initialise
from skdeploy.zoo.cards import read_card

def build():
    network = build_network(read_card(Path("my_card.toml")))
    initialise(network, 7)
    return network
"""

THEIRS = """
import torch
from torch import nn

class Around(nn.Module):
    def __init__(self, channels, end):
        super().__init__()
        self.near, self.far = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=2, dilation=2)
        self.choose, self.head, self.end = nn.Conv2d(8, 16, 1), nn.Conv2d(8, channels, 3, padding=1), end

    def forward(self, x):
        near, far = self.near(x).relu(), self.far(x).relu()
        weights = self.choose((near + far).mean((2, 3), keepdim=True)).unflatten(1, (2, 8)).softmax(1)
        return self.end(self.head(near * weights[:, 0] + far * weights[:, 1]), x)

def made(channels, end):
    torch.manual_seed(0)
    return Around(channels, end).eval()

def denoise():
    return made(3, lambda y, x: (x + y / 20).clamp(0, 1))

def segment():
    return made(4, lambda y, x: 9 * y)

def mask():
    return made(1, lambda y, x: 9 * y)

def embed():
    return made(24, lambda y, x: nn.functional.adaptive_avg_pool2d(y * y, 1).flatten(1))

class Speaker(nn.Module):
    def __init__(self):
        super().__init__()
        self.near, self.far = nn.Conv1d(80, 16, 3, padding=1), nn.Conv1d(80, 16, 7, padding=3)
        self.choose, self.end = nn.Linear(16, 32), nn.Linear(16, 24)

    def forward(self, features):
        near, far = self.near(features).relu(), self.far(features).relu()
        weights = self.choose((near + far).mean(2)).unflatten(1, (2, 16)).softmax(1).unsqueeze(3)
        return self.end((near * weights[:, 0] + far * weights[:, 1]).mean(2))

def speaker():
    torch.manual_seed(0)
    return Speaker().eval()
"""

SPEAKER = """
schema = 1
name = "speaker"
summary = "A vector for each voice"
task = "features"
tolerance = {}
network = { family = "module" }
source = { paper = "none", url = "", licence = "MIT" }

[[inputs]]
name = "features"
shape = [80, "frames"]

[sizes.frames]
usual = 200
"""

DENOISER = """
schema = 1
name = "denoiser"
summary = "Removes noise"
task = "image-to-image"
tolerance = {}
network = { family = "module" }
input = { channels = 3, height = 64, width = 64 }
preprocess = { resize = 64, mean = [0.0, 0.0, 0.0], std = [1.0, 1.0, 1.0] }
source = { paper = "none", url = "", licence = "MIT" }
"""


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has after the first page. Do not change it: take ``desk``."""
    folder = tmp_path_factory.mktemp("reader")
    build_workplace(folder)
    return folder


def build_workplace(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_cards(folder)
        write_images(folder)
        write_checkpoints(folder)
        sort_evaluation_images(folder)
        fast = "--exporter torchscript"
        skdeploy(f"skdeploy export sknet-fashion --fp16 {fast}")
        skdeploy(f"skdeploy export sknet-fashion --int8 --calib calibration/fashion {fast}")
        shutil.copy("build/sknet-fashion-fp16/model.onnx", "someone_elses.onnx")


@pytest.fixture
def desk(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the current folder."""
    folder = Path(shutil.copytree(workplace, tmp_path / "desk"))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    return folder


def write_cards(folder: Path) -> None:
    """``./models`` hides the packaged cards of the same name."""
    models = folder / "models"
    models.mkdir()
    text = tiny.CARD.read_text(encoding="utf-8")
    for path, name in ((models / "sknet50.toml", "sknet50"), (folder / "my_card.toml", "my_card")):
        path.write_text(text.replace('name = "tiny"', f'name = "{name}"'), encoding="utf-8")
    real = (ROOT / "models/sknet-fashion.toml").read_text(encoding="utf-8")
    labels = real[real.index("labels = [") : real.index("[network]")]
    small = text.replace('name = "tiny"', f'name = "sknet-fashion"\n{labels}').replace("classes = 5", "classes = 10")
    small = small.replace("channels = 3\nheight = 32\nwidth = 32", "channels = 1\nheight = 28\nwidth = 28")
    small = small.replace("resize = 36", "resize = 28").replace("[0.485, 0.456, 0.406]", "[0.286]")
    small = small.replace("[0.229, 0.224, 0.225]", "[0.353]").replace("groups = 4", "groups = 8")
    small = re.sub(r"\[reference\]\nparameters = .*", "[reference]\nparameters = 1", small)
    card = models / "sknet-fashion.toml"
    card.write_text(small, encoding="utf-8")
    (models / "weights").mkdir()
    save_file(trained(read_card(card)), models / "weights/sknet-fashion.safetensors")
    digest = digest_file(models / "weights/sknet-fashion.safetensors")
    written = f'\n[weights]\nfile = "weights/sknet-fashion.safetensors"\nsha256 = "{digest}"\n'
    card.write_text(small + written, encoding="utf-8")


def trained(spec: ModelSpec) -> dict[str, torch.Tensor]:
    """Weights that know the classes a little: features at random, and a classifier by least squares on the real images."""
    network = build(spec).eval()
    initialise(network, 7)
    with np.load(FASHION / "evaluation.npz") as arrays:
        images, labels = arrays["images"], torch.from_numpy(arrays["labels"])
    seen: list[torch.Tensor] = []
    hook = network.get_submodule("classifier").register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].detach())
    )
    with torch.inference_mode():
        network(torch.from_numpy(normalise(images, spec.preprocess)))
    hook.remove()
    features = torch.cat([seen[0], torch.ones(len(labels), 1)], dim=1)
    solved = torch.linalg.lstsq(features, 10 * torch.nn.functional.one_hot(labels).float()).solution
    state = network.state_dict()
    state["classifier.weight"], state["classifier.bias"] = solved[:-1].T.contiguous(), solved[-1].contiguous()
    return dict(state)


def write_images(folder: Path) -> None:
    fashion = folder / "calibration/fashion"
    fashion.mkdir(parents=True)
    for name, count in (("calibration", 32), ("evaluation", 60)):
        with np.load(FASHION / f"{name}.npz") as arrays:
            np.savez(fashion / f"{name}.npz", images=arrays["images"][:count], labels=arrays["labels"][:count])
    shutil.copytree(FASHION.parent / "examples", folder / "calibration/examples")
    for seed, place in enumerate(("calib", "eval", "photos")):
        for index, label in enumerate(LABELS):
            for number in range(2):
                path = folder / place / ("" if place == "photos" else label) / f"{label}-{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = tiny.noise(180, 180, 3, seed=100 * seed + 10 * index + number)
                Image.fromarray(pixels).save(path)
    for number in range(12):  # what should come out, and the same with noise
        clean = tiny.noise(8, 8, 3, seed=number).repeat(8, axis=0).repeat(8, axis=1)
        noisy = np.clip(clean + np.random.default_rng(number).normal(0, 12, clean.shape), 0, 255).astype(np.uint8)
        for name, pixels in (("input", noisy), ("target", clean)):
            (folder / "pairs" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / "pairs" / name / f"{number}.png")
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")


def write_checkpoints(folder: Path) -> None:
    """A fine-tuned timm network as Lightning saves it, and the weights of the card ``my_card.toml``."""
    state = {f"net.{key}": tensor.clone() for key, tensor in golden("timm-skresnet18").state.items()}
    for key in ("net.fc.weight", "net.fc.bias"):
        state[key] = torch.cat([state[key], -state[key][: CLASSES - len(state[key])]])
    content = {"state_dict": state | {"criterion.weight": torch.ones(CLASSES)}, "epoch": 29, "global_step": 3}
    torch.save(content, folder / "epoch=29.ckpt")

    spec = read_card(folder / "my_card.toml")
    network = build(spec).eval()
    initialise(network, 7)
    for name in ("mine.pth", "net.pth", "run.pth"):
        torch.save(network.state_dict(), folder / name)
    (folder / "nets.py").write_text(NETS, encoding="utf-8")
    (folder / "theirs.py").write_text(THEIRS, encoding="utf-8")
    (folder / "denoiser.toml").write_text(DENOISER, encoding="utf-8")
    write_speaker(folder)
    page = (ROOT / "docs/how-to/other-networks.md").read_text(encoding="utf-8")
    (folder / "quality.py").write_text(page.partition("# quality.py\n")[2].partition("```")[0], encoding="utf-8")

    save_file(network.state_dict(), folder / "mine.safetensors")
    card = (folder / "my_card.toml").read_text(encoding="utf-8").replace('name = "my_card"', 'name = "mine"')
    digest = digest_file(folder / "mine.safetensors")
    (folder / "mine.toml").write_text(
        f'{card}\n[weights]\nfile = "mine.safetensors"\nsha256 = "{digest}"\n', encoding="utf-8"
    )
    x = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 4 - 2
    with torch.inference_mode():
        np.savez(folder / "golden.npz", input=x.numpy(), logits=network(x).numpy())


def write_speaker(folder: Path) -> None:
    """A network of speech, its card, and samples."""
    (folder / "speaker.toml").write_text(SPEAKER, encoding="utf-8")
    theirs: dict[str, Any] = {}
    exec(THEIRS, theirs)
    names = {"input_names": ["features"], "output_names": ["embedding"]}
    free = {"features": {0: "batch", 2: "frames"}, "embedding": {0: "batch"}}
    with warnings.catch_warnings(action="ignore"):  # torch says that this exporter is the old one
        torch.onnx.export(
            theirs["speaker"](),
            (torch.zeros(2, 80, 64),),
            folder / "speaker.onnx",
            dynamo=False,
            dynamic_axes=free,
            **names,
        )
    (folder / "samples").mkdir()
    for number in range(12):
        features = np.random.default_rng(number).standard_normal((80, 208), np.float32)
        np.savez(folder / "samples" / f"{number}.npz", features=features)


def sort_evaluation_images(folder: Path) -> None:
    """Put each image into the folder of the class that the fine-tuned network sees in it: its FP32 is always right."""
    options = {"labels": "labels.txt", "imgsz": 160, "target": "onnx", "exporter": "torchscript", "images": "eval"}
    bundle = sk.export("epoch=29.ckpt", output="build/sorter", progress=False, **options)
    for image in bundle.predict(sorted(folder.glob("eval/*/*.png"))):
        label = image.predictions[0].top[0].label
        target = folder / "sorted" / label / Path(image.image).name
        target.parent.mkdir(parents=True, exist_ok=True)
        Path(image.image).rename(target)
    shutil.rmtree(folder / "eval")
    shutil.rmtree(bundle.folder)
    (folder / "sorted").rename(folder / "eval")

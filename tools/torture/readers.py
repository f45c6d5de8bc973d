"""Each kind of file that skdeploy reads: good ones, and the reader that must take or refuse whatever becomes of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tools.torture.mutate import Mutator, of_bytes, of_headed, of_onnx, of_part, of_text, of_zip

if TYPE_CHECKING:
    from skdeploy.engines.timing_cache import TimingDevice

ROOT: Final = Path(__file__).resolve().parents[2]
CARD: Final = ROOT / "tests/fixtures/tiny.toml"


@dataclass(frozen=True)
class Kind:
    """``file``: the good one's path below the seeds' folder. ``read`` gets the path of a damaged copy in a copy of its folder,
    ``whole``, or alone.
    """

    file: str
    mutate: Mutator
    read: Callable[[Path], object]
    whole: bool = False


def _card(path: Path) -> None:
    from skdeploy.zoo.build import build
    from skdeploy.zoo.cards import read_card

    build(read_card(path))


def _recipe(path: Path) -> None:
    from skdeploy.quant.recipe import load_recipe

    load_recipe(str(path))


def _config(path: Path) -> None:
    from skdeploy.cli.config import read_tables

    read_tables(path.parent, {"export", "verify"})


def _onnx(path: Path) -> None:
    from skdeploy.passes.foreign import read_foreign

    read_foreign(path)


def _images(path: Path) -> None:
    from skdeploy.images.dataset import open_dataset
    from skdeploy.zoo.cards import read_card

    spec = read_card(CARD)
    data = open_dataset(path)
    for index in range(min(len(data), 4)):
        data.crop(index, spec)


def _checkpoint(path: Path) -> None:
    from skdeploy.checkpoints.read import read_checkpoint

    read_checkpoint(path)


def _golden(path: Path) -> None:
    from skdeploy.parity.golden import read_golden
    from skdeploy.zoo.cards import read_card

    read_golden(path, read_card(CARD))


def _ranges(path: Path) -> None:
    from skdeploy.quant.ranges import load_ranges

    load_ranges(path)


def _baseline(path: Path) -> None:
    from skdeploy.accuracy.baseline import read_baseline

    read_baseline(path)


def _bundle(path: Path) -> None:
    """By its manifest, its evidence and its receipts, and what ``report`` and ``inspect`` make of them."""
    from skdeploy.accuracy.facts import read_facts
    from skdeploy.accuracy.verdict import decide_verdict
    from skdeploy.bundle.folder import load_bundle
    from skdeploy.bundle.receipts import read_receipts

    folder = next(each for each in path.parents if (each / "manifest.json").exists())
    bundle = load_bundle(folder)
    bundle.check_all()
    read_receipts(bundle)
    decide_verdict(read_facts(bundle))


def _part(path: Path) -> None:
    from skdeploy.shards.part import read_part

    read_part(path)


def _timing_cache(path: Path) -> None:
    from skdeploy.engines.timing_cache import read_timing_cache

    read_timing_cache(path, _device())


def _plan(path: Path) -> None:
    from skdeploy.engines.compatibility import read_header

    read_header(path, path.read_bytes())


def _device() -> TimingDevice:
    from skdeploy.engines.timing_cache import TimingDevice

    return TimingDevice(gpu="GPU", compute_capability="8.9", tensorrt="11.0.0", cuda="13.0")


KINDS: Final[Mapping[str, Kind]] = {
    "card": Kind("tiny.toml", of_text, _card),
    "recipe": Kind("recipe.toml", of_text, _recipe),
    "config": Kind("skdeploy.toml", of_text, _config),
    "onnx": Kind("bundle/model.onnx", of_onnx, _onnx),
    "npz": Kind("images.npz", of_zip, _images),
    "npy": Kind("images.npy", of_bytes, _images),
    "png": Kind("image.png", of_bytes, _images),
    "jpeg": Kind("image.jpg", of_bytes, _images),
    "tiff": Kind("image.tiff", of_bytes, _images),
    "webp": Kind("image.webp", of_bytes, _images),
    "list": Kind("list.txt", of_text, _images),
    "safetensors": Kind("bundle/weights.safetensors", of_headed, _checkpoint),
    "pytorch": Kind("weights.pth", of_zip, _checkpoint),
    "pickle": Kind("old.pth", of_bytes, _checkpoint),
    "caffemodel": Kind("official.caffemodel", of_bytes, _checkpoint),
    "golden": Kind("golden.npz", of_zip, _golden),
    "ranges": Kind("bundle/ranges.json", of_text, _ranges),
    "baseline": Kind("baseline.json", of_text, _baseline),
    "manifest": Kind("bundle/manifest.json", of_text, _bundle, whole=True),
    "parity": Kind("bundle/parity.json", of_text, _bundle, whole=True),
    "evidence": Kind("bundle/evidence/accuracy.json", of_text, _bundle, whole=True),
    "part": Kind("part", of_part, _part),
    "timing cache": Kind("timing.cache", of_bytes, _timing_cache),
    "plan": Kind("plan.engine", of_bytes, _plan),
}


def make_seeds(folder: Path) -> None:
    """A good file of each kind: of a tiny network, exported to INT8 and evaluated here."""
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    from skdeploy.accuracy.baseline import write_baseline
    from skdeploy.accuracy.evaluate import EvaluationOptions, evaluate
    from skdeploy.core.spec import Precision
    from skdeploy.engines.timing_cache import write_timing_cache
    from skdeploy.line.calibration import CalibrationOptions
    from skdeploy.line.export import export
    from skdeploy.line.int8_options import Int8Options
    from skdeploy.line.options import ExportOptions

    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (24, 40, 44, 3), dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "images.npz", images=pixels, labels=random.integers(0, 5, 24))
    np.save(folder / "images.npy", pixels[:2])
    for name in ("image.png", "image.jpg", "image.tiff", "image.webp"):
        Image.fromarray(pixels[0]).save(folder / name)
    (folder / "list.txt").write_text("image.png,0\nimage.jpg,1\n", encoding="utf-8")
    shutil.copy(CARD, folder)
    shutil.copy(ROOT / "calibration/fashion.toml", folder / "recipe.toml")
    (folder / "skdeploy.toml").write_text('[export]\nfp16 = true\nimgsz = 32\nseed = 1\nlabels = "labels.txt"\n')
    options = ExportOptions(
        str(CARD),
        images=folder / "images.npz",
        output=folder / "bundle",
        target="onnx",
        precision=Precision.INT8,
        lowering={"int8": Int8Options(calibration=CalibrationOptions(images=folder / "images.npz"))},
    )
    export(options)
    evaluation = evaluate(folder / "bundle", EvaluationOptions(folder / "images.npz"))
    write_baseline(folder / "baseline.json", evaluation)
    weights = load_file(folder / "bundle/weights.safetensors")
    torch.save(weights, folder / "weights.pth")
    torch.save({"state_dict": weights, "epoch": 3}, folder / "old.pth", _use_new_zipfile_serialization=False)
    from tests.checkpoints import caffe_reference
    from tests.checkpoints.caffe_tiny import LAYERS

    blobs = caffe_reference.trained(LAYERS, 3, 5)
    (folder / "official.caffemodel").write_bytes(caffe_reference.caffemodel(LAYERS, blobs))
    logits = random.standard_normal((4, 5)).astype(np.float32)
    np.savez(folder / "golden.npz", input=random.standard_normal((4, 3, 32, 32)).astype(np.float32), logits=logits)
    from tests.shards.parts import part_of

    (folder / "part").write_bytes(part_of(1).encode())
    write_timing_cache(folder / "timing.cache", _device(), b"kernels")
    (folder / "plan.engine").write_bytes(b"ftrt" + bytes(300))
    for name, kind in KINDS.items():
        if not (folder / kind.file).is_file():
            raise FileNotFoundError(f"no good file for {name}: {kind.file}")

"""Each kind of file that skdeploy reads: good ones, and the reader that must take or refuse whatever becomes of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from tools.torture.answers import answering, write_answers
from tools.torture.mutate import (
    Mutator,
    of_answers,
    of_bytes,
    of_digested,
    of_headed,
    of_image,
    of_onnx,
    of_part,
    of_text,
    of_zip,
)

if TYPE_CHECKING:
    from skdeploy.engines.timing_cache import TimingDevice
    from skdeploy.images.targets import Kind as TargetKind

ROOT: Final = Path(__file__).resolve().parents[2]
CARD: Final = ROOT / "tests/fixtures/tiny.toml"


@dataclass(frozen=True)
class Kind:
    """``file``: the good one's path below the seeds' folder. ``read`` gets the path of a damaged copy in a copy of its folder,
    ``whole``, or alone. ``recorded``: the bundle's manifest has the digest of the damaged file.
    """

    file: str
    mutate: Mutator
    read: Callable[[Path], object]
    whole: bool = False
    recorded: bool = False

    def place(self, path: Path, content: bytes) -> None:
        """Puts a damaged file in place of the good one."""
        path.write_bytes(content)
        if self.recorded:
            manifest = path.parent / "manifest.json"
            found = json.loads(manifest.read_text(encoding="utf-8"))
            (artifact,) = (each for each in found["artifacts"] if each["path"] == path.name)
            artifact |= {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
            for other in found["artifacts"]:  # else the file is taken for one of an earlier export
                parents = other["provenance"]["parents"]
                parents |= {path.name: artifact["sha256"]} if path.name in parents else {}
            manifest.write_text(json.dumps(found), encoding="utf-8")


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
    """By its manifest, its evidence and its receipts, and the page that ``report`` makes of them."""
    from skdeploy.bundle.folder import load_bundle
    from skdeploy.report.page import render_report

    render_report(load_bundle(_folder(path)))


def _graph(path: Path) -> None:
    """What ``predict`` makes of an image with it."""
    import skdeploy

    folder = _folder(path)
    skdeploy.load_bundle(folder).predict(folder.parent / "image.png")


def _folder(path: Path) -> Path:
    return next(each for each in path.parents if (each / "manifest.json").exists())


def _pairs(kind: TargetKind, path: Path) -> None:
    from skdeploy.images.pairs import has_targets, open_pairs
    from skdeploy.zoo.cards import read_card

    spec = read_card(CARD)
    source = path if path.suffix == ".npz" else path.parent.parent
    has_targets(source, spec)
    pairs = open_pairs(source, spec)
    for index in range(min(len(pairs), 4)):
        pairs.read(index, spec, kind)


def _predictions(path: Path) -> None:
    """As ``evaluate`` takes them up: none of it ends a run."""
    from skdeploy.accuracy.kept import Kept

    kept = Kept("none")
    kept.path = path
    kept.load({"logits": np.zeros((24, 5), np.float32)})


def _repository(path: Path) -> None:
    """As ``triton --version next`` does, which adds to the model that is there."""
    from skdeploy.serve.triton.repository import TritonOptions, write_repository

    models = path.parents[1]
    write_repository(models.parent / "bundle", TritonOptions(models, backend="python", name="tiny", version="next"))
    shutil.rmtree(max(path.parent.glob("[0-9]*"), key=lambda folder: int(folder.name)))


def _server(path: Path) -> None:
    """What ``verify --server`` makes of a server with these answers, up to the first that it must compute."""
    from skdeploy.bundle.folder import load_bundle
    from skdeploy.serve.triton.proof import connect

    with (
        answering(path.read_bytes()) as url,
        connect(load_bundle(path.parent / "bundle"), url, "tiny").open() as session,
    ):
        session.run({"input": np.zeros((1, 3, 32, 32), np.float32)})


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
    "pair": Kind("pairs/target/0.png", of_image, partial(_pairs, "image"), whole=True),
    "mask": Kind("masks/masks/0.png", of_image, partial(_pairs, "mask"), whole=True),
    "pairs": Kind("pairs.npz", of_zip, partial(_pairs, "image")),
    "manifest": Kind("bundle/manifest.json", of_text, _bundle, whole=True),
    "parity": Kind("bundle/parity.json", of_text, _bundle, whole=True),
    "recorded parity": Kind("bundle/parity.json", of_text, _bundle, whole=True, recorded=True),
    "recorded headroom": Kind("bundle/headroom.json", of_text, _bundle, whole=True, recorded=True),
    "recorded ranges": Kind("bundle/ranges.json", of_text, _bundle, whole=True, recorded=True),
    "recorded graph": Kind("bundle/model.int8.onnx", of_onnx, _graph, whole=True, recorded=True),
    "receipt": Kind("bundle/receipts/receipt.json", of_digested, _bundle, whole=True),
    "predictions": Kind("predictions.npz", of_zip, _predictions),
    "repository": Kind("models/tiny/config.pbtxt", of_text, _repository, whole=True),
    "server": Kind("server.json", of_answers, _server, whole=True),
    "evidence": Kind("bundle/evidence/accuracy.json", of_text, _bundle, whole=True),
    "part": Kind("part", of_part, _part),
    "timing cache": Kind("timing.cache", of_bytes, _timing_cache),
    "plan": Kind("plan.engine", of_bytes, _plan),
}


def make_seeds(folder: Path, exporter: Literal["dynamo", "torchscript"] = "dynamo") -> None:
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
    from skdeploy.passes.trace_options import TraceOptions
    from skdeploy.serve.triton.repository import TritonOptions, write_repository

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
        trace=TraceOptions(exporter=exporter),
        precision=Precision.INT8,
        lowering={"int8": Int8Options(calibration=CalibrationOptions(images=folder / "images.npz"))},
    )
    export(options)
    evaluation = evaluate(folder / "bundle", EvaluationOptions(folder / "images.npz", receipt=True))
    receipt = min((folder / "bundle/receipts").iterdir())
    receipt.rename(receipt.with_name("receipt.json"))  # its own name tells the device
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
    for name, targets in (("pairs", ("input", "target")), ("masks", ("images", "masks"))):
        for place, side in zip(
            targets, (pixels[0], pixels[0] if name == "pairs" else pixels[0, ..., 0] % 5), strict=True
        ):
            (folder / name / place).mkdir(parents=True)
            Image.fromarray(side).save(folder / name / place / "0.png")
    np.savez(folder / "pairs.npz", images=pixels[:2], targets=pixels[:2])
    kept, none = random.standard_normal((24, 5)).astype(np.float32), np.frombuffer(b"[]", np.uint8)
    np.savez(folder / "predictions.npz", logits=kept, unreadable=none)
    write_repository(folder / "bundle", TritonOptions(folder / "models", backend="python"))
    write_answers(folder / "server.json", folder / "bundle")
    for name, kind in KINDS.items():
        if not (folder / kind.file).is_file():
            raise FileNotFoundError(f"no good file for {name}: {kind.file}")

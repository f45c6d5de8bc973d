"""The pictures that parity keeps are those of the one image in which a graph differs, and a report needs no image for them."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from skdeploy.bundle.folder import load_bundle
from skdeploy.core.spec import Precision
from skdeploy.line.export import Export, run_line
from skdeploy.line.options import ExportOptions
from skdeploy.parity.report import Comparison
from skdeploy.passes.trace_options import TraceOptions
from skdeploy.report.page import render_report
from tests import tiny
from tests.report.pages import Page

SIDE = 24
NAMES = ("a.png", "b.png", "c.png", "d.png")
BRIGHT = 2  # the image of which torch computes something else than the graph
LIGHT = 0.7  # the mean of its pixels is above this, that of the others below, normalised or not


class Perturbed(nn.Module):
    """Of a bright image, torch changes the top rows, which a traced graph does not have."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.sigmoid(self.conv(x))
        if torch.onnx.is_in_onnx_export():
            return found
        means = x.mean((1, 2, 3), keepdim=True)
        rows = (torch.arange(SIDE) < 5)[:, None]
        return torch.where((means > LIGHT) & rows, 1 - found, found)


def restoring() -> nn.Module:
    torch.manual_seed(0)
    return Perturbed(3)


def segmenting() -> nn.Module:
    torch.manual_seed(0)
    return Perturbed(4)


def lined(factory: str, folder: Path) -> Export:
    images = folder / "images"
    images.mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        low = 200 if seed == BRIGHT else 0
        pixels = low + tiny.noise(SIDE, SIDE, 3, seed=seed).astype(float) * (255 - low) / 255
        Image.fromarray(pixels.astype(np.uint8)).save(images / name)
    return run_line(
        ExportOptions(
            f"{__name__}:{factory}",
            Precision.FP32,
            image_size=(SIDE, SIDE),
            trace=TraceOptions(exporter="torchscript"),
            target="onnx",
            images=images,
            output=folder / "bundle",
        )
    )


def opened(file: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(file))))


@pytest.fixture(scope="module", params=["restoring", "segmenting"])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return lined(request.param, tmp_path_factory.mktemp(request.param))


def test_the_pictures_are_of_the_image_in_which_the_graph_differs(done: Export) -> None:
    worst = done.parity.worst
    assert done.parity.verdict == "fail"
    assert worst is not None
    assert worst.image.endswith(NAMES[BRIGHT])
    changed = opened(worst.pictures.difference).reshape(SIDE, SIDE, -1).max(2) > 0
    assert changed[:5].mean() > 0.5  # a class may stay the same where all are as likely
    assert not changed[5:].any()


def test_what_was_found_is_what_onnx_runtime_computes(done: Export) -> None:
    worst, spec = done.parity.worst, done.bundle.manifest.model
    assert worst is not None
    pixels = np.asarray(Image.open(done.bundle.folder.parent / "images" / NAMES[BRIGHT]))
    mean, std = (np.array(each).reshape(-1, 1, 1) for each in (spec.preprocess.mean, spec.preprocess.std))
    planes = ((pixels.transpose(2, 0, 1) / 255 - mean) / std)[None].astype(np.float32)
    path = done.bundle.folder / worst.found.split(" on ")[0]
    (found,) = onnxruntime.InferenceSession(str(path)).run(None, {"input": planes})
    shown = opened(worst.pictures.found)
    if spec.task == "image-to-image":
        levels = np.rint(255 * np.clip(found[0] * std + mean, 0, 1)).transpose(1, 2, 0)
        assert np.abs(shown.astype(float) - levels).max() <= 1  # resampled to its own size, float32's last digit rounds
    else:
        classes = found[0].argmax(0)
        assert len({tuple(pixel) for pixel in shown.reshape(-1, 3)}) == len(np.unique(classes))
        assert all(len(np.unique(shown[classes == each], axis=0)) == 1 for each in np.unique(classes))


def test_a_report_needs_no_image_that_was_measured_and_an_older_bundle_no_pictures(
    done: Export, tmp_path: Path
) -> None:
    folder = shutil.copytree(done.bundle.folder, tmp_path / "bundle")
    assert done.parity.worst is not None
    found = Page(render_report(load_bundle(folder)))
    shown = [attributes for tag, attributes in found.elements if tag == "img"]
    assert len(shown) == 3
    assert NAMES[BRIGHT] in found.sections["parity"]
    assert all(str(each["alt"]).endswith(NAMES[BRIGHT]) for each in shown)
    pictures = done.parity.worst.pictures
    files = (pictures.reference, pictures.found, pictures.difference)
    assert [each["src"] for each in shown] == [f"data:image/png;base64,{file}" for file in files]
    assert "worst" not in done.parity.model_copy(update={"worst": None}).model_dump()


def test_pictures_of_an_engine_that_is_built_anew_are_left_out(done: Export) -> None:
    report, (comparison, *_) = done.parity, done.parity.comparisons
    assert report.worst is not None
    kept = [c for c in report.comparisons if c.place == report.worst.found]
    anew = Comparison(artifact=kept[0].artifact, backend="x", precision=comparison.precision, verdict="unproven")
    assert report.with_unproven(anew).worst is None
    assert report.with_unproven(anew.model_copy(update={"artifact": "other.plan"})).worst == report.worst

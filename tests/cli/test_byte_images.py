"""A network that ends in uint8 images with the channels last: proven, judged on pairs, and written as it gives them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from PIL import Image
from torch import Tensor, nn

from skdeploy.bundle.folder import load_bundle
from tests.cli.conftest import Run
from tests.networks.denoising import noisy_pairs, write_pairs

IMAGES = 12


class Smooth(nn.Module):
    """The mean of 3 x 3 pixels, and little else: (N, 3, H, W) of 0..1 to bytes, (N, H, W, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        self.mean.weight.data.fill_(1 / 9)
        self.more = nn.Conv2d(3, 3, 3, padding=1)
        self.more.weight.data.mul_(0.05)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.mean(x) + torch.tanh(self.more(x)) * 0.01
        return (made * 255).round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)


def test_bytes_are_images_from_the_proof_to_the_file(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    noisy, clean = noisy_pairs(IMAGES)
    pairs = write_pairs(tmp_path / "pairs", noisy, clean)
    path = tmp_path / "smooth.onnx"
    fed = noisy.transpose(0, 3, 1, 2).astype(np.float32) / 255
    axes = {"input_names": ["x"], "output_names": ["img"], "dynamic_axes": {"x": {0: "n"}, "img": {0: "n"}}}
    with warnings.catch_warnings(action="ignore"):  # of the exporter that most people still call
        torch.onnx.export(
            Smooth().eval(), (torch.from_numpy(fed[:2]),), str(path), dynamo=False, opset_version=17, **axes
        )
    (expected,) = InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": fed})
    bundle = tmp_path / "bundle"
    said = ("--images", pairs / "input", "--target", "onnx", "--output", bundle)
    done = run("export", path, "--fp16", *said)
    assert done.code == 0, done.err
    assert "task: image-to-image, by the shapes of the outputs: images in, images out, as uint8" in done.out + done.err
    assert str(load_bundle(bundle).manifest.model.outputs[0]) == "img: uint8[batch, 64, 64, 3]"
    assert run("verify", bundle, "--images", pairs / "input", "--suite", "all").code == 0

    written = run("predict", bundle, pairs / "input", "-o", tmp_path / "out", "--backend", "onnxruntime")
    assert written.code == 0, written.err
    images = np.stack([np.asarray(Image.open(tmp_path / "out" / f"{index:03}.png")) for index in range(IMAGES)])
    apart = np.abs(images.astype(int) - expected)
    assert apart.max() <= 1  # FP16 rounds 255 to 0.125, which moves some values by one level
    judged = run("evaluate", bundle, "--data", pairs, "--max-drop", "1", "--json")
    assert judged.code == 0, judged.err
    figure = judged.json["artifacts"][0]["figures"][0]
    errors = ((expected.astype(float) - clean) ** 2).mean((1, 2, 3))
    assert figure["name"] == "PSNR"
    assert figure["value"] == pytest.approx(float(np.mean(10 * np.log10(255**2 / errors))), abs=0.01)
    assert run("report", bundle).code == 0

    graph = onnx.load(path)
    (scale,) = (
        node for node in graph.graph.node if node.op_type == "Mul" and node.output[0].endswith("Mul_1_output_0")
    )
    scale.op_type = "Div"  # all but black
    onnx.save(graph, tmp_path / "wrong.onnx")
    golden = tmp_path / "golden.npz"
    np.savez(golden, input=fed, img=expected)
    failed = run("export", tmp_path / "wrong.onnx", "--golden", golden, *said[:-1], tmp_path / "refused")
    assert failed.code == 8
    assert "PSNR" in failed.err

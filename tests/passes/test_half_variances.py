"""Standard deviations in FP16 graphs: squares pass its end, and a difference of squares has few digits, so both stay FP32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from skdeploy.backends import onnxruntime
from skdeploy.ir.variances import variance_nodes
from skdeploy.passes.foreign import read_foreign
from skdeploy.passes.half import HalfPrecision
from skdeploy.passes.simplify import simplify
from tests.graphs.foreign import export
from tests.graphs.quantizable import Array
from tests.passes.float_types import FLOAT16, check_types, float_types


class Pooled(nn.Module):
    """Places of a map, weighted by attention, to their mean and deviation, as ECAPA and SKA-TDNN pool frames of speech."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.stem, self.score, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2)
        weights = self.score(x[..., None] / 100).squeeze(3).softmax(2)
        mean = (x * weights).sum(2)
        if self.way == "difference":
            deviation = ((x**2 * weights).sum(2) - mean**2).clamp(min=1e-4).sqrt()
        elif self.way == "var":
            deviation = x.var(2).clamp(min=1e-4).sqrt()
        else:
            deviation = ((x - x.mean(2, keepdim=True)) * (x - x.mean(2, keepdim=True))).mean(2).add(1e-5).sqrt()
        return self.head(torch.cat([mean, deviation], 1))


def halved(way: str, folder: Path) -> tuple[ir.Model, ir.Model]:
    model = simplify(read_foreign(export(Pooled(way).eval(), folder / "m.onnx", "torchscript", 17, shape=(3, 9, 8))))
    return model, HalfPrecision()(model.clone()).model


def emulated(model: ir.Model, images: Array) -> Array:
    """In FP16 where the graph says so: ONNX Runtime's CPU alone computes it in FP32."""
    with onnxruntime.open_model(model, "m") as session:
        return session.run({"input": images})["logits"]


@pytest.mark.parametrize("way", ["difference", "var", "centred"])
def test_a_deviation_stays_float32_from_its_squares_to_its_root(way: str, tmp_path: Path) -> None:
    before, model = halved(way, tmp_path)
    check_types(model)
    kept = {node.name for node in variance_nodes(before)}
    assert len(kept) >= 3
    for node in model.graph:
        if node.name in kept:
            assert FLOAT16 not in float_types(node), node
    assert any(FLOAT16 in float_types(node) for node in model.graph if node.op_type == "Conv")


@pytest.mark.parametrize("way", ["difference", "var", "centred"])
def test_where_the_squares_pass_the_end_of_fp16_the_result_is_right(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = 300 * np.random.default_rng(0).standard_normal((4, 3, 9, 8)).astype(np.float32)
    before, model = halved(way, tmp_path)
    expected, found = emulated(before, images), emulated(model, images)
    # FP16 has 11 bits: 2^-11 of the largest for each of a dozen roundings, in sums of 16 to 48 that grow as their root.
    assert np.abs(found - expected).max() < 12 * 2.0**-11 * np.abs(expected).max()
    monkeypatch.setattr("skdeploy.passes.half.variance_nodes", lambda _: frozenset())
    _, without = halved(way, tmp_path)
    assert not np.isfinite(emulated(without, images)).all()  # the test can fail


def test_a_root_without_squares_below_it_is_no_deviation(tmp_path: Path) -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head((x * x + 1).sqrt().mean((2, 3)) + (x.mean((2, 3)).abs() + 1).sqrt())

    torch.manual_seed(0)
    model = simplify(read_foreign(export(Root().eval(), tmp_path / "m.onnx", "torchscript", 17, shape=(3, 9, 8))))
    assert variance_nodes(model) == frozenset()

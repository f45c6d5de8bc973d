"""A failed FP16 graph: which modules must stay FP32 is found by trying, and what is found works."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from skdeploy.backends import onnxruntime
from skdeploy.backends.base import Session
from skdeploy.backends.metrics import compare_outputs
from skdeploy.core.patterns import module_of
from skdeploy.parity.mend import Judged, find_mend
from skdeploy.passes.foreign import read_foreign
from skdeploy.passes.half import HalfPrecision
from skdeploy.passes.simplify import simplify
from tests.graphs.foreign import export

LIMIT_DB = 55.0
IMAGES = np.random.default_rng(0).standard_normal((4, 3, 9, 8)).astype(np.float32)


class Skip(nn.Module):
    """A branch around which a skip goes. In between it is ``times`` as large; with a difference there, digits are lost."""

    def __init__(self, times: float, *, cancels: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.times, self.cancels = times, cancels

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) * self.times
        if self.cancels:
            y = (y + 64) - 64  # 6 bits go
        return x + self.second(y / self.times).relu()


class Network(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.blocks, self.head = nn.Conv2d(3, 8, 3), nn.Sequential(*blocks), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def written(folder: Path, *blocks: nn.Module) -> Path:
    torch.manual_seed(0)
    path = export(Network(*blocks).eval(), folder / "own.onnx", "torchscript", 17, shape=(3, 9, 8))
    ir.save(simplify(read_foreign(path)), folder / "model.onnx")
    return folder / "model.onnx"


def judging(graph: Path, images: np.ndarray) -> tuple[list[float], Callable[[Session], Judged]]:
    """A judge against the FP32 graph, and the SQNR of all that it was asked."""
    with onnxruntime.open_session(graph) as session:
        expected = session.run({"input": images})
    asked: list[float] = []

    def judge(session: Session) -> Judged:
        found = session.run({"input": images})
        finite = np.isfinite(found["logits"]).all()
        sqnr_db = compare_outputs(expected, found).min_sqnr_db if finite else -math.inf
        asked.append(sqnr_db)
        return Judged(sqnr_db >= LIMIT_DB, sqnr_db)

    return asked, judge


def alone_db(graph: Path, keep: tuple[str, ...], judge: Callable[[Session], Judged]) -> float:
    half = HalfPrecision(keep)(onnxruntime.load_graph(graph)).model
    with onnxruntime.open_model(half, "m") as session:
        return judge(session).sqnr_db


def test_the_block_that_loses_digits_is_found_and_keeping_it_brings_the_graph_into_parity(tmp_path: Path) -> None:
    graph = written(tmp_path, Skip(1), Skip(1, cancels=True), Skip(1))
    asked, judge = judging(graph, IMAGES)
    assert alone_db(graph, (), judge) < LIMIT_DB
    mend = find_mend(graph, (), judge, [({"input": IMAGES[:1]}, 1)])
    assert mend is not None
    assert mend.keep_fp32 == (r"^blocks\.1(\.|$)",)
    assert alone_db(graph, mend.keep_fp32, judge) == mend.sqnr_db >= LIMIT_DB
    assert len(asked) < 12  # no search through all subsets


def test_what_passes_the_end_of_fp16_is_kept_first(tmp_path: Path) -> None:
    graph = written(tmp_path, Skip(1), Skip(3e4), Skip(1))
    images = 30 * IMAGES  # the map reaches 3e5 there, and no constant does
    _, judge = judging(graph, images)
    assert alone_db(graph, (), judge) == -math.inf
    mend = find_mend(graph, (), judge, [({"input": images}, 4)])
    assert mend is not None
    assert mend.sqnr_db >= LIMIT_DB
    assert "blocks" in mend.flags
    kept = HalfPrecision(mend.keep_fp32)
    kept(onnxruntime.load_graph(graph))
    assert all(module_of(name).startswith("blocks.1") for name, why in kept.kept.items() if "--keep-fp32" in why)


def test_nothing_is_advised_where_no_few_parts_mend_it(tmp_path: Path) -> None:
    graph = written(tmp_path, *(Skip(1, cancels=True) for _ in range(6)))
    _, judge = judging(graph, IMAGES)
    assert find_mend(graph, (), judge, []) is None


def test_patterns_that_were_given_stay(tmp_path: Path) -> None:
    graph = written(tmp_path, Skip(1), Skip(1, cancels=True), Skip(1, cancels=True))
    _, judge = judging(graph, IMAGES)
    mend = find_mend(graph, (r"^blocks\.1",), judge, [])
    assert mend is not None
    assert mend.keep_fp32 == (r"^blocks\.1", r"^blocks\.2(\.|$)")
    with pytest.raises(AssertionError):
        assert alone_db(graph, mend.keep_fp32[1:], judge) >= LIMIT_DB

"""Tiny graphs to build engines from: networks that are traced once, and single nodes that are written by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from skdeploy.core.architecture import BranchSpec, SelectiveKernelSpec, SKNetSpec, StageSpec, StemSpec

IMAGE = (3, 16, 16)


def tiny_spec() -> SKNetSpec:
    """Two SK units of 8 and 16 channels: every kind of node that an SKNet has, and a build of 0.1 s."""
    branches = (BranchSpec(kernel=3, groups=2), BranchSpec(kernel=3, dilation=2, groups=2))
    return SKNetSpec(
        stem=StemSpec(channels=8, kernel=3, stride=1, max_pool=False),
        stages=(
            StageSpec(units=1, middle_channels=8, out_channels=16, stride=1),
            StageSpec(units=1, middle_channels=16, out_channels=16, stride=2),
        ),
        selective_kernel=SelectiveKernelSpec(branches=branches, reduction=4, min_width=8),
        classes=4,
    )


def export(path: Path, *, half: bool = False, dynamic: tuple[str, ...] = ("batch",), batch: int = 2) -> Path:
    """The tiny network, folded, as ONNX; ``dynamic`` names its dynamic dimensions, of batch, height and width."""
    import torch

    from skdeploy.zoo.build import initialise
    from skdeploy.zoo.fold import fold
    from skdeploy.zoo.sknet import SKNet

    model = SKNet(tiny_spec(), IMAGE[0])
    initialise(model, seed=0)
    model = fold(model.eval())
    images = torch.zeros(batch, *IMAGE)
    if half:
        model, images = model.half(), images.half()
    axes = {"batch": 0, "height": 2, "width": 3}
    shapes = {axes[name]: torch.export.Dim(name, min=1, max=256) for name in dynamic}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's own; what skdeploy says of them is tested in tests/graph
        torch.onnx.export(
            model,
            (images,),
            str(path),
            dynamo=True,
            dynamic_shapes=(shapes,) if shapes else None,
            input_names=["images"],
            output_names=["logits"],
            opset_version=19,
            external_data=False,
            verbose=False,
        )
    return path


@pytest.fixture(scope="session")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("graphs") / "fp32.onnx")


@pytest.fixture(scope="session")
def fp16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("graphs") / "fp16.onnx", half=True)


@pytest.fixture(scope="session")
def fixed_batch_of_2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("graphs") / "fixed.onnx", dynamic=())


@pytest.fixture(scope="session")
def dynamic_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("graphs") / "size.onnx", dynamic=("batch", "height", "width"))


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return tmp_path / "plan.engine"


GraphWriter = Callable[..., Path]


@pytest.fixture
def write_graph(tmp_path: Path) -> GraphWriter:
    """Writes a graph x -> y of the given nodes; ``shape`` is both's, ``weights`` are arrays by name."""
    import onnx
    from onnx import helper

    from tests.graphs.small_files import model_of

    def write(
        *nodes: onnx.NodeProto,
        dtype: int = onnx.TensorProto.FLOAT,
        out_dtype: int | None = None,
        shape: tuple[str | int, ...] = ("batch", 3),
        **weights: object,
    ) -> Path:
        made = model_of(nodes, {"x": shape}, {"y": shape}, weights, dtype=dtype, result=out_dtype)
        made.opset_import.extend(helper.make_opsetid(node.domain, 1) for node in nodes if node.domain)
        path = tmp_path / "graph.onnx"
        onnx.save(made, path)
        return path

    return write

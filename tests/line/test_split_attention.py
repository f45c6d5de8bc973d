"""ResNeSt's split attention, with one group of channels and with two, from a module to a verified engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from PIL import Image

from skdeploy.core.spec import Precision
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.export import Export, export
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions
from skdeploy.passes.trace_options import TraceOptions
from tests import tiny
from tests.graphs.networks import images, relative_error
from tests.networks import split_attention

BLOCKS = ["units.0.attend", "units.1.attend", "units.2.attend"]


def exported(factory: str, folder: Path, **options: Any) -> Export:
    pictures = folder / "images"
    pictures.mkdir()
    for index in range(16):  # patches of six pixels: the means of finer noise, and with them the logits, are all alike
        patches = tiny.noise(6, 6, 3, seed=index).repeat(6, 0).repeat(6, 1)
        Image.fromarray(patches).save(pictures / f"{index:02}.png")
    int8 = Int8Options(calibration=CalibrationOptions(images=pictures))
    return export(
        ExportOptions(
            f"tests.networks.split_attention:{factory}",
            **{"trace": TraceOptions(exporter="torchscript"), "target": "onnx", **options},
            lowering={"int8": int8} if options["precision"] is Precision.INT8 else {},
            image_size=(32, 32),
            images=pictures,
            output=folder / "bundle",
        )
    )


def selects(done: Export, name: str) -> list[str]:
    """The blocks that a graph selects with sigmoids, by module; none is left in the form of the module."""
    nodes = onnx.load(done.bundle.folder / name).graph.node
    assert not {"Softmax", "ReduceSum"} & {node.op_type for node in nodes}
    return [node.name.partition("/")[0] for node in nodes if node.op_type == "Sigmoid"]


def test_half_precision_of_two_groups_is_verified(tmp_path: Path) -> None:
    done = exported("two_groups", tmp_path, precision=Precision.FP16)
    assert done.bundle.manifest.verdict == "verified"
    assert selects(done, "model.fp16.onnx") == BLOCKS
    nodes = onnx.load(done.bundle.folder / "model.onnx").graph.node
    # The gate's second layer gives one difference of logits a channel, and keeps its groups.
    layers = [node for node in nodes if node.op_type == "Conv" and node.name.partition("/")[0] in BLOCKS]
    groups = [attribute.i for node in layers for attribute in node.attribute if attribute.name == "group"]
    assert groups == [2, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("factory", ["one_group", "two_groups"])
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
def test_each_precision_is_verified_in_an_engine(
    factory: str, exporter: Any, precision: Precision, tmp_path: Path
) -> None:
    done = exported(
        factory, tmp_path, precision=precision, trace=TraceOptions(exporter=exporter), target="tensorrt_rtx"
    )
    assert done.bundle.manifest.verdict == "verified"
    assert selects(done, f"model.{precision}.onnx") == BLOCKS
    assert "engine" in {artifact.format for artifact in done.bundle.manifest.artifacts}


def test_the_two_ways_to_write_it_are_one_function() -> None:
    """So each covers for the other's mistakes in the network above."""
    inputs = torch.from_numpy(images(3, 32, 32))
    for cardinality in (1, 2):
        one, other = (split_attention.build(cardinality, view=view) for view in (True, False))
        other.load_state_dict(one.state_dict())
        assert relative_error(other(inputs).numpy(), one(inputs).numpy()) < 1e-6  # float32 sums in another order

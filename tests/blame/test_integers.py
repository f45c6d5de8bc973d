"""Networks that give nothing but integers: the stage and the tensor to blame are found from the floats that decide them."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from skdeploy.blame.blame import blame
from skdeploy.bundle.folder import load_bundle
from skdeploy.core.spec import Precision
from skdeploy.images.dataset import open_dataset
from skdeploy.line.export import export
from skdeploy.line.options import ExportOptions
from skdeploy.parity.blame_report import BlameReport
from tests.blame.faulty import chain, edit_graph, tensor_of
from tests.conftest import FAST
from tests.networks import sk_unet

MODULE = "tests.networks.class_maps"
IMAGES = 4
PLACE = 5  # of the convolutions, in the middle of the network


def bundle_of(folder: Path, network: str, precision: Precision) -> Path:
    sk_unet.save_images(folder / "images", IMAGES, seed=30_000_000)
    (folder / "card.toml").write_text(sk_unet.CARD, encoding="utf-8")
    export(
        ExportOptions(
            f"{MODULE}:{network}", card=str(folder / "card.toml"), precision=precision, trace=FAST, target="onnx",
            images=folder / "images", output=folder / "bundle",
        )
    )  # fmt: skip
    return folder / "bundle"


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(tmp_path_factory.mktemp("maps"), "class_map", Precision.FP16)


def blamed(bundle: Path) -> BlameReport:
    spec = load_bundle(bundle).manifest.model
    return blame(chain(bundle), open_dataset(bundle.parent / "images", spec=spec).load(spec), spec)


def spoil(graph: onnx.GraphProto) -> None:
    """Doubles and turns the sign of some channels of one convolution."""
    node = [node for node in graph.node if node.op_type == "Conv"][PLACE]
    (weight,) = [one for one in graph.initializer if one.name == node.input[1]]
    array = numpy_helper.to_array(weight).copy()
    array[::2] *= -2
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))


def test_a_bundle_without_a_fault_has_nothing_to_blame(maps: Path) -> None:
    report = blamed(maps)
    assert report.guilty is None
    assert next(stage.verdict for stage in report.stages) == "reference"


@pytest.mark.parametrize("artifact", ["model.onnx", "model.fp16.onnx"])
def test_the_spoilt_convolution_is_found_behind_class_numbers(artifact: str, maps: Path, tmp_path: Path) -> None:
    shutil.copytree(maps.parent, tmp_path / "copy")
    bundle = tmp_path / "copy" / "bundle"
    node = [node for node in onnx.load(bundle / artifact).graph.node if node.op_type == "Conv"][PLACE]
    edit_graph(bundle, artifact, spoil)
    report = blamed(bundle)
    failed = next(stage for stage in report.stages if stage.stage == report.guilty)
    assert "mIoU" in " ".join(failed.problems)
    tensor = tensor_of(report, artifact)
    assert node.name.rpartition("/")[0] in (tensor.node, tensor.module, tensor.node.rpartition("/")[0])
    assert tensor.own_db is not None
    assert tensor.own_db < report.floor_db

"""Bundles that a tiny card makes, and faults planted in them as a broken tool would leave them: file and digest agree."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import nn

from skdeploy.blame.blame import Stage, blame
from skdeploy.blame.chain import chain_of
from skdeploy.bundle.folder import load_bundle
from skdeploy.core.errors import PrecisionError
from skdeploy.core.files import digest_file
from skdeploy.core.spec import ModelSpec, Precision
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.export import export
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions
from skdeploy.line.stations.average_pool import PoolOptions
from skdeploy.line.stations.regroup import RegroupOptions
from skdeploy.parity.blame_report import BlamedTensor, BlameReport
from skdeploy.passes.trace_options import TraceOptions
from tests import tiny
from tests.tiny import CARD
from tests.zoo.tiny_networks import live

Pixels = NDArray[np.uint8]


def photographs(count: int, *, seed: int = 0) -> Pixels:
    """Random images of low frequencies and some noise, uint8 (N, 40, 44, 3)."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (count, 10, 11, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return np.clip(small + generator.integers(-20, 21, small.shape), 0, 255).astype(np.uint8)


def crops(spec: ModelSpec, count: int = 2) -> Pixels:
    """What the network is fed with, before normalisation."""
    height, width = spec.input.height, spec.input.width
    return photographs(count, seed=5)[:, 2 : 2 + height, 4 : 4 + width]


@cache
def bundle_of(
    precision: Precision,
    *,
    embed: bool = False,
    scale: float = 1.0,
    half: bool = False,
    batch: int | None = None,
    rewritten: bool = False,
) -> Path:
    """A bundle of the tiny card with weights as after training; not to be changed. ``scale``: of one unit's last
    normalisation, which makes its output that much larger. ``half``: INT8's fallback is FP16. ``rewritten``: for hardware."""
    folder = Path(mkdtemp(prefix="skdeploy-test-"))
    network = live(tiny.spec().network).float()
    with torch.no_grad():
        for parameter in network.get_submodule("stages.1.0.expand.bn").parameters():
            parameter.mul_(scale)
    save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, folder / "w.safetensors")
    np.savez(folder / "images.npz", images=photographs(16, seed=3))
    calibration = CalibrationOptions(images=folder / "images.npz" if precision is Precision.INT8 else None)
    fallback = Precision.FP16 if half or precision is not Precision.INT8 else Precision.FP32
    options = ExportOptions(
        str(CARD),
        precision=precision,
        output=folder / "bundle",
        weights=str(folder / "w.safetensors"),
        trace=TraceOptions(exporter="torchscript", embed_preprocess=embed, batch=batch),
        lowering={"int8": Int8Options(calibration=calibration, fallback=fallback)} if precision.integer else {},
        target="onnx",
        images=folder / "images.npz",
        num_images=4,
        rewrites={"regroup": RegroupOptions(regroup=2), "average pool": PoolOptions(gap="average-pool")}
        if rewritten
        else {},
    )
    try:
        export(options)
    except PrecisionError:  # a unit that is scaled out of FP16's range: the export says so, and the files are there
        assert scale > 1
    return folder / "bundle"


@cache
def bundle_of_graph() -> Path:
    """A bundle that an ONNX file was made into: nothing is known of the network in PyTorch."""
    folder = Path(mkdtemp(prefix="skdeploy-test-"))
    np.savez(folder / "images.npz", images=photographs(4, seed=3))
    source = str(bundle_of(Precision.FP32) / "model.onnx")
    export(ExportOptions(source, output=folder / "bundle", target="onnx", images=folder / "images.npz"))
    return folder / "bundle"


def edit_graph(bundle: Path, name: str, change: Callable[[onnx.GraphProto], None]) -> None:
    """Changes an ONNX file of a bundle, and its digest in the manifest."""
    model = onnx.load(bundle / name)
    change(model.graph)
    onnx.save(model, bundle / name)
    manifest: Any = json.loads((bundle / "manifest.json").read_text())
    (entry,) = [artifact for artifact in manifest["artifacts"] if artifact["path"] == name]
    entry["sha256"], entry["size_bytes"] = digest_file(bundle / name), (bundle / name).stat().st_size
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def edit_constant(bundle: Path, name: str, wanted: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    """Changes the one constant of a graph whose name ends in ``wanted``."""

    def edit(graph: onnx.GraphProto) -> None:
        (constant,) = [one for one in graph.initializer if one.name.endswith(wanted)]
        array = numpy_helper.to_array(constant)
        changed = change(array.copy())
        assert not np.array_equal(changed, array)
        constant.CopyFrom(numpy_helper.from_array(changed.astype(array.dtype), constant.name))

    edit_graph(bundle, name, edit)


def spec_of(bundle: Path) -> ModelSpec:
    return load_bundle(bundle).manifest.model


def changed(network: nn.Module, change: Callable[[nn.Module], None]) -> nn.Module:
    """A copy of a network with something changed."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        change(other)
    return other


def chain(bundle: Path) -> list[Stage]:
    """The stages of a bundle."""
    return list(chain_of(load_bundle(bundle)))


def blamed(bundle: Path, stages: list[Stage] | None = None, **options: Any) -> BlameReport:
    """What blame finds on two images."""
    spec = spec_of(bundle)
    return blame(stages or chain(bundle), crops(spec), spec, **options)


def tensor_of(report: BlameReport, guilty: str) -> BlamedTensor:
    """The tensor to blame, in this stage."""
    assert report.guilty == guilty
    assert report.tensor is not None
    return report.tensor

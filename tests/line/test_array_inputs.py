"""Networks whose inputs are not one image, from the source to the proof: what is read, said, refused, and in parity."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from skdeploy.bundle.folder import load_bundle
from skdeploy.core.errors import CardError, ExportError, UsageError
from skdeploy.core.precision import PRECISIONS
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.export import Export, export
from skdeploy.line.init_card import init_card
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions
from skdeploy.line.sources import find_source
from skdeploy.passes.trace_options import TraceOptions
from skdeploy.zoo.cards import read_card
from tests.graphs import array_networks as networks
from tests.graphs.array_networks import Bands, Pair, Speaker, Volume

KINDS = {kind.__name__: kind for kind in (Bands, Volume, Speaker, Pair)}


def exported(kind: Any, folder: Path, precision: str = "fp32", *, of: str = "onnx", **options: Any) -> Export:
    samples = networks.save_samples(kind, folder / "samples", 6)
    given = {"images": samples, "target": "onnx", "output": folder / "bundle", **options}
    if of == "onnx":
        model = str(networks.export_onnx(kind, folder / "net.onnx"))
        given["card"] = str(networks.card(kind, folder / "card.toml", "onnx"))
    else:
        model = f"{networks.__name__}:{kind.__name__.lower()}"
        given["card"] = str(networks.card(kind, folder / "card.toml", "module"))
        given["trace"] = TraceOptions(exporter="dynamo" if of == "dynamo" else "torchscript")
    if precision == "int8":
        given["lowering"] = {"int8": Int8Options(calibration=CalibrationOptions(images=samples))}
    return export(ExportOptions(model, PRECISIONS[precision], **given))


def deployed(done: Export, graph: str, kind: Any, sizes: tuple[int, ...] = ()) -> None:
    """The graph by itself, in ONNX Runtime, against torch: another number of samples, and other values, than any check saw."""
    rows = [networks.sample(kind, 100 + index) for index in range(3)]
    feeds = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    for size in sizes or (0,):
        fed = {
            name: array if not size else np.resize(array, (*array.shape[:-1], size)) for name, array in feeds.items()
        }
        expected = networks.trained(kind)(*(torch.from_numpy(array) for array in fed.values())).numpy()
        session = onnxruntime.InferenceSession(str(done.bundle.folder / graph), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, fed)
        # float32 sums of some hundred terms in another order
        np.testing.assert_allclose(found, expected, atol=1e-5 * float(np.abs(expected).max()))


def test_two_images_and_integers_of_an_onnx_file_keep_their_names_and_are_in_parity(tmp_path: Path) -> None:
    done = exported(Pair, tmp_path, "int8")
    assert done.parity.verdict == "pass"
    assert [value.name for value in onnx.load(done.bundle.folder / "model.onnx").graph.input] == [
        "before",
        "after",
        "step",
    ]
    assert [str(each) for each in load_bundle(done.bundle.folder).manifest.model.inputs] == [
        "before: float32[3, 12, 12]",
        "after: float32[3, 12, 12]",
        "step: int64[2]",
    ]
    assert {result.suite for result in done.parity.suites} == {"noise", "zeros", "extremes", "tiny-contrast"}
    deployed(done, "model.onnx", Pair)


def test_free_frames_of_a_module_stay_free(tmp_path: Path) -> None:
    done = exported(Speaker, tmp_path, of="torchscript")
    assert done.parity.verdict == "pass"
    (value,) = onnx.load(done.bundle.folder / "model.onnx").graph.input
    assert [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] == ["batch", 20, "frames"]
    deployed(done, "model.onnx", Speaker, sizes=(20, 40, 96))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("of", ["onnx", "torchscript", "dynamo"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input_goes_through_every_precision(kind: str, of: str, precision: str, tmp_path: Path) -> None:
    done = exported(KINDS[kind], tmp_path, precision, of=of)
    assert done.parity.verdict == "pass"
    deployed(done, "model.onnx", KINDS[kind])
    assert done.bundle.manifest.precision == PRECISIONS[precision]


def test_without_a_card_the_inputs_and_the_assumed_sizes_are_said(tmp_path: Path) -> None:
    source = find_source(ExportOptions(str(networks.export_onnx(Speaker, tmp_path / "net.onnx"))))
    said = "\n".join(source.notes)
    assert "inputs: features: float32[20, frames]; frames 64 is assumed; `skdeploy init` writes a card" in said


@pytest.mark.parametrize(("frames", "usual"), [((83, 100), 80), ((7, 9), 7), ((64,), 64)])
def test_without_a_card_the_free_sizes_are_those_of_the_smallest_sample(
    frames: tuple[int, ...], usual: int, tmp_path: Path
) -> None:
    for size in frames:
        (tmp_path / "samples").mkdir(exist_ok=True)
        np.savez(tmp_path / "samples" / f"{size}.npz", features=np.zeros((20, size), np.float32))
    model = str(networks.export_onnx(Speaker, tmp_path / "net.onnx"))
    calibration = CalibrationOptions(images=tmp_path / "samples")
    for given in (
        {"images": tmp_path / "samples"},
        {"lowering": {"int8": Int8Options(calibration=calibration)}, "precision": PRECISIONS["int8"]},
    ):
        source = find_source(ExportOptions(model, **given))  # type: ignore[arg-type]  # options of several types
        assert source.spec.usual_sizes == {"frames": usual}
        assert f"frames {usual} fits the smallest sample" in "\n".join(source.notes)


class Fives(networks.Speaker):
    """Takes frames by the five, so it does not run on 64."""

    def forward(self, features: Tensor) -> Tensor:
        means = features.unflatten(2, (-1, 5)).mean(3)
        return super().forward(features - means.repeat_interleave(5, 2))


def test_no_step_runs_a_size_that_is_not_a_multiple_of_the_cards(tmp_path: Path) -> None:
    network = networks.trained(Fives)
    example = (torch.zeros(2, 20, 40),)
    axes = {"features": {0: "n", 2: "frames"}, "out": {0: "n"}}
    named: dict[str, Any] = {"input_names": ["features"], "output_names": ["out"], "dynamic_axes": axes}
    with warnings.catch_warnings(action="ignore"):  # of the exporter that most people still call
        torch.onnx.export(network, example, str(tmp_path / "net.onnx"), dynamo=False, opset_version=17, **named)
    with pytest.raises(ExportError):  # without a card 64 is tried
        find_source(ExportOptions(str(tmp_path / "net.onnx")))
    card = networks.card(Speaker, tmp_path / "card.toml", "onnx")
    card.write_text(card.read_text(encoding="utf-8").replace("multiple = 4", "multiple = 20"), encoding="utf-8")
    samples = networks.save_samples(Speaker, tmp_path / "samples", 3)
    given = {"card": str(card), "images": samples, "target": "onnx", "output": tmp_path / "bundle"}
    assert export(ExportOptions(str(tmp_path / "net.onnx"), **given)).parity.verdict == "pass"  # type: ignore[arg-type]  # options of several types


def test_init_writes_a_card_that_is_read_and_that_export_takes(tmp_path: Path) -> None:
    model = networks.export_onnx(Speaker, tmp_path / "net.onnx")
    path, spec = init_card(str(model), tmp_path / "card.toml")
    assert read_card(path).inputs == spec.inputs
    assert "multiple = 8" in path.read_text(encoding="utf-8")
    path.write_text(path.read_text(encoding="utf-8").replace("usual = 64", "usual = 40"), encoding="utf-8")
    assert find_source(ExportOptions(str(model), card=str(path))).spec.usual_sizes == {"frames": 40}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"before"', '"first"', "the card says first, after, step, the network has before, after, step"),
        ("[3, 12, 12]", "[3, 12, 10]", "inputs.before: the card says before: float32"),
        ("[3, 12, 12]", "[3, 12]", "inputs.before: the card says before: float32"),
        ('dtype = "int64"', 'dtype = "int32"', "inputs.step: the card says step: int32"),
    ],
)
def test_a_card_of_other_inputs_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    model, card = networks.export_onnx(Pair, tmp_path / "net.onnx"), networks.card(Pair, tmp_path / "c.toml", "onnx")
    card.write_text(card.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(CardError, match="does not fit") as raised:
        find_source(ExportOptions(str(model), card=str(card)))
    assert message in raised.value.message


def test_a_module_that_does_not_take_what_its_card_says_is_refused(tmp_path: Path) -> None:
    card = networks.card(Volume, tmp_path / "c.toml", "module")
    with pytest.raises(UsageError, match=r"volume \(2, 1, 6, 10, 10\): RuntimeError") as raised:
        find_source(ExportOptions(f"{networks.__name__}:bands", card=str(card)))
    assert "[[inputs]]" in raised.value.advice


@pytest.mark.parametrize("option", [{"image_size": (32, 32)}, {"assume_imagenet": True}])
def test_options_of_images_are_refused(option: dict[str, Any], tmp_path: Path) -> None:
    card = networks.card(Bands, tmp_path / "c.toml", "module")
    with pytest.raises(UsageError, match="is for networks that take images"):
        find_source(ExportOptions(f"{networks.__name__}:bands", card=str(card), **option))


def test_without_samples_parity_is_on_noise_that_says_so(tmp_path: Path) -> None:
    done = exported(Bands, tmp_path, images=None)
    assert done.parity.dataset == "random noise, seed 0"
    assert done.parity.chosen == "random"

"""From images to ranges: what streams, what is reported, what is refused, and that the same input gives the same bytes."""

from __future__ import annotations

import gc
import json
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from PIL import Image

from skdeploy.core.errors import CalibrationError, UsageError
from skdeploy.core.progress import Silent
from skdeploy.core.spec import CalibrationMethod, ModelSpec
from skdeploy.images.audit_report import AuditReport
from skdeploy.images.dataset import Dataset, open_dataset
from skdeploy.images.decoding import Crop
from skdeploy.images.duplicates import fingerprints
from skdeploy.images.selection import random_images, select
from skdeploy.passes.trace_options import TraceOptions
from skdeploy.quant.calibrate import EQUALIZING_IMAGES, dead_tensors
from skdeploy.quant.quantize import quantize
from skdeploy.quant.ranges import Ranges, load_ranges
from skdeploy.quant.steps import SILENT
from tests.conftest import FAST
from tests.graphs.networks import (
    run,
    traced,
)
from tests.quant.noise import calibrated, dataset, framed, input_of, normalised, pixels


def audit_of(ranges: Ranges) -> AuditReport:
    return AuditReport.model_validate_json(json.dumps(ranges.audit))


class Watch(Silent):
    """Notes what it is told, and then does something."""

    def __init__(self, then: Callable[[str], object] = len) -> None:
        self.told: list[str] = []
        self.then = then

    def update(self, detail: str) -> None:
        self.told.append(detail)
        self.then(detail)


def test_without_equalization_ranges_and_means_are_those_of_the_graphs_tensors(
    spec: ModelSpec, graph: ir.Model
) -> None:
    """From ONNX Runtime on all images at once, without skdeploy."""
    images = dataset(21)
    found = calibrated(graph, spec, images, method=CalibrationMethod.MINMAX, equalize=False, exact_input=False)
    watched = graph.clone()
    inside = [name for name in found.tensors if "/" in name and not name.endswith("/input")]
    watched.graph.outputs.extend(v for node in watched.graph for v in node.outputs if v.name in inside)
    inputs = normalised(pixels(21))
    seen = {"input": inputs, **run(watched, inputs)}
    assert {"input", "stem.relu/Relu"} < found.tensors.keys()
    for name in ("input", *inside):
        held, values = found.tensors[name], seen[name]
        # Convolutions of one image and of many may add in another order; the input is a multiply-add in float32.
        assert held.minimum == pytest.approx(values.min(), rel=1e-5, abs=1e-6)
        assert held.maximum == pytest.approx(values.max(), rel=1e-5)
        assert held.threshold == max(-held.minimum, held.maximum)
        assert held.shifted_threshold == (None if held.minimum < -held.threshold / 2 else held.threshold)
        if name in found.channel_means:
            assert found.channel_means[name] == pytest.approx(values.mean(axis=(0, 2, 3)), rel=1e-4, abs=1e-5)
    assert (found.data.images, found.data.sha256, found.data.random) == (21, images.digest, False)


def test_equalization_makes_the_channels_of_a_tensor_equally_large(spec: ModelSpec, graph: ir.Model) -> None:
    """With ranges of the graph that will be quantized: INT8 steps in that graph, not in the one that was given."""
    images = dataset(16)
    plain = calibrated(graph, spec, images, equalize=False)
    found = calibrated(graph, spec, images)
    assert plain.channel_maxima == {}
    maxima = found.channel_maxima["stem.relu/Relu"]
    assert max(maxima) == pytest.approx(plain.tensors["stem.relu/Relu"].maximum, rel=1e-5)
    assert found.channel_means["stem.relu/Relu"] != plain.channel_means["stem.relu/Relu"]


def test_the_same_input_gives_the_same_bytes(spec: ModelSpec, graph: ir.Model) -> None:
    mse = CalibrationMethod.MSE
    first = calibrated(graph, spec, dataset(24), method=mse).text()
    assert calibrated(traced(spec, FAST), spec, dataset(24), method=mse).text() == first
    assert calibrated(graph, spec, dataset(24, seed=1), method=mse).text() != first


def test_neither_the_batch_nor_the_processors_change_the_ranges(spec: ModelSpec, graph: ir.Model) -> None:
    images = dataset(19)
    first = calibrated(graph, spec, images, method=CalibrationMethod.MSE, batch=1).text()
    assert all(
        calibrated(graph, spec, images, method=CalibrationMethod.MSE, batch=batch).text() == first for batch in (7, 64)
    )
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert calibrated(graph, spec, images, method=CalibrationMethod.MSE).text() == first
    finally:
        os.sched_setaffinity(0, allowed)


def test_the_order_of_the_images_changes_nothing_but_what_came_last(spec: ModelSpec, graph: ir.Model) -> None:
    images = dataset(24)
    one = calibrated(graph, spec, images)
    other = calibrated(graph, spec, images.take(range(23, -1, -1)))
    assert other.tensors == one.tensors
    assert other.channel_maxima == one.channel_maxima
    for name, means in one.channel_means.items():
        assert other.channel_means[name] == pytest.approx(means, rel=2e-6)  # sums in another order, six digits
    assert other.data.sha256 != one.data.sha256


def test_a_fixed_batch_that_does_not_divide_the_images_changes_nothing(spec: ModelSpec, graph: ir.Model) -> None:
    """The copies that fill the last batch are not counted: 4 batches of 5 for 18 images."""
    images = dataset(18)
    fixed = traced(spec, TraceOptions(exporter="torchscript", batch=5))
    options: dict[str, Any] = {"method": CalibrationMethod.MINMAX}
    one, other = (calibrated(model, spec, images, **options) for model in (graph, fixed))
    assert other.data == one.data
    assert audit_of(other).used == 18
    for name, held in one.tensors.items():
        assert other.tensors[name].threshold == pytest.approx(held.threshold, rel=1e-5)
    for name, means in one.channel_means.items():
        assert other.channel_means[name] == pytest.approx(means, rel=1e-4, abs=1e-5)


def test_a_graph_that_takes_pixels_has_the_ranges_of_one_that_takes_planes(spec: ModelSpec, graph: ir.Model) -> None:
    images = dataset(12)
    embedded = traced(spec, TraceOptions(exporter="torchscript", embed_preprocess=True))
    assert input_of(embedded)[0].dtype == "uint8"
    for exact in (True, False):
        options: dict[str, Any] = {"exact_input": exact}
        one, other = (calibrated(model, spec, images, **options) for model in (graph, embedded))
        assert list(other.tensors) == list(one.tensors)
        assert list(other.channel_maxima) == list(one.channel_maxima)
        for name, held in one.tensors.items():
            assert other.tensors[name].threshold == pytest.approx(held.threshold, rel=1e-5)


class Watched(Dataset):
    """Files or arrays as ever; how many crops are alive at a time is counted."""

    def crop(self, index: int, spec: ModelSpec) -> Crop:
        crop = super().crop(index, spec)
        pixels = crop.pixels.copy()
        alive.append(weakref.ref(pixels))
        most.append(sum(reference() is not None for reference in alive))
        return Crop(**{**vars(crop), "pixels": pixels})


alive: list[weakref.ref[NDArray[np.uint8]]] = []
most: list[int] = []


def test_images_stream(spec: ModelSpec, graph: ir.Model) -> None:
    """As many crops are alive with 256 images as with 64."""
    peaks = []
    for count in (64, 256):
        alive.clear()
        most.clear()
        gc.collect()
        calibrated(
            graph, spec, Watched("watched", pixels=framed(pixels(count))), batch=8, method=CalibrationMethod.MINMAX
        )
        assert len(alive) == count + EQUALIZING_IMAGES  # the first ones twice
        peaks.append(max(most))
    assert peaks[1] <= peaks[0] + 1 <= 18  # a batch that is made, and one that is read


@pytest.mark.parametrize("at", ["channels, on", "24 of 40"])
def test_an_interrupt_leaves_nothing_or_the_old_file(at: str, spec: ModelSpec, graph: ir.Model, tmp_path: Path) -> None:
    def interrupt(detail: str) -> None:
        if detail.startswith(at):
            raise KeyboardInterrupt

    def calibrate_to(path: Path, progress: Watch) -> None:
        calibrated(graph, spec, dataset(40), progress=progress).write(path)

    with pytest.raises(KeyboardInterrupt):
        calibrate_to(tmp_path / "new.json", Watch(interrupt))
    assert list(tmp_path.iterdir()) == []
    calibrate_to(tmp_path / "old.json", Watch())
    before = (tmp_path / "old.json").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        calibrate_to(tmp_path / "old.json", Watch(interrupt))
    assert [file.name for file in tmp_path.iterdir()] == ["old.json"]
    assert (tmp_path / "old.json").read_bytes() == before
    load_ranges(tmp_path / "old.json")


def test_progress_tells_of_both_passes(spec: ModelSpec, graph: ir.Model) -> None:
    watch = Watch()
    calibrated(graph, spec, dataset(20), progress=watch)
    assert watch.told[0] == "channels, on 20 images"
    assert watch.told[-1] == "20 of 20 images"


def weight_of(graph: ir.Model, operator: str, index: int = 0) -> ir.Value:
    weight = [node for node in graph.graph if node.op_type == operator][index].inputs[1]
    assert weight.const_value is not None
    return weight


def change(weight: ir.Value, edit: Callable[[NDArray[np.float32]], object]) -> None:
    array = weight.const_value.numpy().copy()
    edit(array)
    weight.const_value = ir.tensor(array, name=weight.name)


@pytest.mark.parametrize("equalize", [True, False])
def test_a_weight_that_is_nan_is_named_by_its_tensor_and_the_first_image(
    equalize: bool, spec: ModelSpec, graph: ir.Model
) -> None:
    change(weight_of(graph, "Conv"), lambda array: array.__setitem__((3, 0, 0, 0), np.nan))
    with pytest.raises(CalibrationError, match=r"stem\.\S+ \(\w+\) is not finite .* for the image images\[0\]\n"):
        calibrated(graph, spec, dataset(6), equalize=equalize)


GREY = 76


def only_white_overflows(graph: ir.Model) -> None:
    """The stem's kernels sum the red channel, (76 / 255 - 0.3) / 0.2 = -0.01 a tap for grey, which Relu ends, and 3.5 for
    white: 9 taps of 2e37 are 6e38 then, beyond float32."""
    weight = weight_of(graph, "Conv")
    change(weight, lambda array: array.__imul__(0))
    change(weight, lambda array: array[:, 0].__iadd__(np.float32(2e37)))


@pytest.mark.parametrize("place", [3, 70])
def test_an_image_that_overflows_is_named(place: int, spec: ModelSpec, graph: ir.Model) -> None:
    """Weights so large that only the white image, whose values have one sign, leaves float32."""
    images = np.full((80, 24, 24, 3), GREY, np.uint8)
    images[place:] = 255
    only_white_overflows(graph)
    with pytest.raises(
        CalibrationError, match=rf"stem\.\S+ \(\w+\) is not finite .* for the image images\[{place}\]\n"
    ):
        calibrated(graph, spec, Dataset("grey, then white", pixels=images), equalize=place < EQUALIZING_IMAGES)


def test_a_dead_channel_divides_nothing_by_zero(spec: ModelSpec, graph: ir.Model) -> None:
    stem = next(node for node in graph.graph if node.op_type == "Conv")
    change(weight_of(graph, "Conv"), lambda array: array[2].__imul__(0))
    bias = stem.inputs[2]
    assert bias is not None
    change(bias, lambda array: array.__setitem__(2, -1.0))
    with np.errstate(all="raise", under="ignore"):
        ranges = calibrated(graph, spec, dataset(16))
        found = quantize(graph, spec, ranges)
    assert ranges.channel_maxima["stem.relu/Relu"][2] == 0
    assert dead_tensors(ranges) == {}
    assert np.isfinite(run(found.model, normalised(pixels(4)))["logits"]).all()


def test_a_dead_tensor_is_named_and_has_a_scale(spec: ModelSpec, graph: ir.Model) -> None:
    stem = next(node for node in graph.graph if node.op_type == "Conv")
    change(weight_of(graph, "Conv"), lambda array: array.__imul__(0))
    bias = stem.inputs[2]
    assert bias is not None
    change(bias, lambda array: array.fill(-1.0))
    for method in (CalibrationMethod.MSE, CalibrationMethod.MINMAX):
        with np.errstate(all="raise", under="ignore"):
            ranges = calibrated(graph, spec, dataset(16), method=method)
            found = quantize(graph, spec, ranges)
        dead = dead_tensors(ranges)
        assert list(dead) == ["stem.relu/Relu"]
        assert dead["stem.relu/Relu"] == pytest.approx(127 * SILENT)
        assert "stem.relu/Relu" not in {tensor.name for tensor in audit_of(ranges).coverage}  # it never moved
        assert all(scale >= SILENT for scale in found.scales.values())
        assert np.isfinite(run(found.model, normalised(pixels(4)))["logits"]).all()


def test_a_percentile_that_is_zero_gives_way_to_the_largest_value(spec: ModelSpec, graph: ir.Model) -> None:
    """Where nearly all values are zero, a percentile of the magnitudes may be."""
    ranges = calibrated(graph, spec, dataset(16), method=CalibrationMethod.PERCENTILE, percentile=1.0)
    relus = [held for name, held in ranges.tensors.items() if name.endswith("/Relu")]
    assert any(held.threshold == pytest.approx(held.maximum) for held in relus)
    assert all(held.threshold > 0 for held in relus)


def test_three_images_are_warned_about(spec: ModelSpec, graph: ir.Model) -> None:
    report = audit_of(calibrated(graph, spec, dataset(3)))
    assert report.used == 3
    assert report.warnings()[0].startswith("3 images: too few to cover what the network sees in the field")
    assert not any("too few to cover" in text for text in audit_of(calibrated(graph, spec, dataset(120))).warnings())


def test_noise_is_marked_in_the_data_and_in_the_audit(spec: ModelSpec, graph: ir.Model) -> None:
    noise = calibrated(graph, spec, random_images(spec, 8, 0))
    assert noise.data.random
    assert audit_of(noise).random
    assert "calibrated on random noise" in audit_of(noise).warnings()[0]
    assert not calibrated(graph, spec, dataset(8)).data.random


def files(folder: Path, count: int, broken: tuple[int, ...] = ()) -> Dataset:
    folder.mkdir()
    for index, image in enumerate(framed(pixels(count))):
        path = folder / f"{index:03}.png"
        if index in broken:
            path.write_bytes(b"\x89PNG and no more")
        else:
            Image.fromarray(image).save(path, compress_level=1)
    return open_dataset(folder)


def test_an_unreadable_image_among_200_is_left_out_named_and_counted(
    spec: ModelSpec, graph: ir.Model, tmp_path: Path
) -> None:
    place = 5
    images = files(tmp_path / "images", 200, (place,))
    ranges = calibrated(graph, spec, images)
    report = audit_of(ranges)
    assert (ranges.data.images, report.used, report.asked) == (199, 199, 200)
    assert [image.name for image in report.unreadable] == [f"{place:03}.png"]
    assert f"left out 1 image that could not be read; first: {place:03}.png" in " ".join(report.warnings())
    without = calibrated(graph, spec, images.take([index for index in range(200) if index != place]))
    assert ranges.tensors == without.tensors
    assert ranges.channel_means == without.channel_means


def test_more_than_one_in_a_hundred_is_an_error(spec: ModelSpec, graph: ir.Model, tmp_path: Path) -> None:
    images = files(tmp_path / "images", 120, (100, 110))
    with pytest.raises(CalibrationError, match="2 of the 120 images") as error:
        calibrated(graph, spec, images)
    assert "  100.png: " in error.value.message


def test_a_broken_image_after_an_unreadable_one_has_its_own_name(
    spec: ModelSpec, graph: ir.Model, tmp_path: Path
) -> None:
    """Places in the run and in the data set differ by then."""
    images = files(tmp_path / "images", 100, (2,))
    Image.new("RGB", (24, 24), (255, 255, 255)).save(tmp_path / "images/050.png")
    for index in range(100):
        if index not in (2, 50):
            Image.new("RGB", (24, 24), (GREY, GREY, GREY)).save(tmp_path / f"images/{index:03}.png")
    only_white_overflows(graph)
    with pytest.raises(CalibrationError, match=r"for the image 050\.png\n"):
        calibrated(graph, spec, images)


def test_a_set_smaller_than_asked_for_is_in_the_audit(spec: ModelSpec, graph: ir.Model) -> None:
    from skdeploy.quant.calibrate import CalibrationSettings, calibrate
    from skdeploy.quant.ranges import ALGORITHM_VERSION, Algorithm

    images = dataset(20)
    algorithm = Algorithm(method=CalibrationMethod.MINMAX, version=ALGORITHM_VERSION)
    settings = CalibrationSettings(algorithm, asked=500)
    evaluation = fingerprints(images.take([4]), spec)
    ranges = calibrate(graph, input_of(graph), spec, select(images, 500, 0), settings, evaluation=evaluation)
    report = audit_of(ranges)
    assert (report.used, report.asked) == (20, 500)
    assert report.overlap.exact.count == 1
    assert json.loads(ranges.text())["audit"] == ranges.audit


def test_a_batch_below_one_is_refused(spec: ModelSpec, graph: ir.Model) -> None:
    with pytest.raises(UsageError, match="--calib-batch"):
        calibrated(graph, spec, dataset(4), batch=0)

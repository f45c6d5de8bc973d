"""The observation pass against numpy on all tensors of all images at once, which ONNX Runtime gives for the same graph."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from skdeploy.core.errors import CalibrationError, SkdeployError, UsageError
from skdeploy.core.spec import CalibrationMethod
from skdeploy.quant.methods import CANDIDATES
from skdeploy.quant.observe import Fit, Observation, observe
from skdeploy.quant.observers import BINS, MagnitudeHistogram
from skdeploy.quant.thresholds import shifted_threshold, threshold
from tests.refused import refused

Array = NDArray[Any]

# A Sqrt that is NaN and an Exp that overflows where pixels are large, a tensor without space, one of integers, and one that has
# lost its images. The names are those of SKNet graphs: with dots and slashes.
GRAPH = """
<ir_version: 10, opset_import: ["" : 19]>
tiny (float[{batch},3,6,5] input) => (float[{batch},4] logits)
<float[4,3,3,3] w, int64[2] space = {{2,3}}, float offset = {{4.0}}, int64[1] zero = {{0}}>
{{
  conv = Conv<pads=[1,1,1,1]>(input, w)
  relu = Relu(conv)
  shifted = Add(conv, offset)
  root = Sqrt(shifted)
  grown = Exp(root)
  sum = Add(relu, grown)
  mean = ReduceMean(sum, space)
  logits = Flatten(mean)
  best = ArgMax<axis=1>(relu)
  together = ReduceMax(relu, zero)
}}
"""
# onnx.parser takes no dots and slashes in names.
TENSORS = {"conv": "stem.conv/Conv", "relu": "stem.relu/Relu", "root": "root/Sqrt", "grown": "grown/Exp"}
INSIDE = list(TENSORS.values())
EVERYTHING = ["input", *INSIDE, "logits"]
METHODS = [method for method in CalibrationMethod if method is not CalibrationMethod.AUTO]  # a choice among the others


def tiny(batch: int | str = "batch") -> ir.Model:
    proto = onnx.parser.parse_model(GRAPH.format(batch=batch))
    weights = np.random.default_rng(0).normal(0, 0.15, (4, 3, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    model = ir.from_proto(proto)
    for node in model.graph:
        for value in node.outputs:
            value.name = TENSORS.get(value.name or "", value.name)
    return model


def pixels(images: int, seed: int = 0) -> Array:
    """Later images are brighter: up to twice, so that a range goes on growing."""
    noise = np.random.default_rng(seed).normal(0, 0.5, (images, 3, 6, 5))
    return (noise * np.linspace(1, 2, images)[:, None, None, None]).astype(np.float32)


def batches(images: Array, size: int, *, padding: float | None = None) -> Iterator[tuple[dict[str, Array], int]]:
    """With ``padding`` the last batch is filled up, with that value."""
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        count = len(batch)
        if padding is not None and count < size:
            batch = np.concatenate((batch, np.full((size - count, *batch.shape[1:]), padding, np.float32)))
        yield {"input": batch}, count


def all_tensors(images: Array, names: Sequence[str] = INSIDE) -> dict[str, Array]:
    """Every tensor of every image at once, from ONNX Runtime without skdeploy."""
    proto = ir.to_proto(tiny())
    proto.graph.output.extend(value for value in proto.graph.value_info if value.name in names)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = ["logits", *names]
    return {"input": images, **dict(zip(wanted, session.run(wanted, {"input": images}), strict=True))}


def watched(images: Array, size: int = 4, model: ir.Model | None = None, **options: Any) -> dict[str, Observation]:
    options = {"method": CalibrationMethod.MINMAX, "threads": 2, **options}
    names = options.pop("tensors", EVERYTHING)
    return observe(model or tiny(), names, batches(images, size), len(images), **options)


def same(one: dict[str, Observation], other: dict[str, Observation]) -> bool:
    """Bit by bit."""

    def plain(observation: Observation) -> list[Any]:
        arrays = (observation.channel_mean, observation.channel_max)
        numbers = (observation.minimum, observation.maximum, observation.threshold, observation.early_threshold)
        numbers = (*numbers, observation.shifted_threshold)
        return [*numbers, *(None if array is None else array.tobytes() for array in arrays)]

    return one.keys() == other.keys() and all(plain(one[name]) == plain(other[name]) for name in one)


@pytest.mark.parametrize("method", METHODS)
def test_ranges_are_those_of_all_images_together(method: CalibrationMethod) -> None:
    images = pixels(17)
    seen, expected = watched(images, method=method), all_tensors(images)
    assert list(seen) == EVERYTHING
    for name, observation in seen.items():
        assert (observation.minimum, observation.maximum) == (expected[name].min(), expected[name].max())


def test_minmax_and_percentile_thresholds_are_numpys() -> None:
    images = pixels(17)
    expected = all_tensors(images)
    largest = watched(images, method=CalibrationMethod.MINMAX)
    common = watched(images, method=CalibrationMethod.PERCENTILE, percentile=97.5)
    for name, values in expected.items():
        assert largest[name].threshold == np.abs(values).max()
        # The bins of a histogram are at most 1/2048 of the largest magnitude.
        error = abs(common[name].threshold - np.percentile(np.abs(values), 97.5))
        assert error <= np.abs(values).max() / (BINS / 2)


@pytest.mark.parametrize("method", [CalibrationMethod.ENTROPY, CalibrationMethod.MSE])
def test_histogram_methods_see_every_value_of_every_image(method: CalibrationMethod) -> None:
    images = pixels(17)
    for name, observation in watched(images, method=method).items():
        histogram = MagnitudeHistogram()
        histogram.update(all_tensors(images)[name])
        assert observation.threshold == threshold(histogram, method)


@pytest.mark.parametrize("method", [CalibrationMethod.MINMAX, CalibrationMethod.PERCENTILE])
@pytest.mark.parametrize(("images", "early"), [(16, 12), (17, 13), (3, 3), (1, 1)])
def test_the_early_threshold_is_that_of_the_first_three_quarters(
    images: int, early: int, method: CalibrationMethod
) -> None:
    values = pixels(images)
    whole = watched(values, method=method, percentile=100)
    first = watched(values[:early], method=method, percentile=100)
    for name in EVERYTHING:
        assert whole[name].early_threshold == first[name].threshold
    if early < images:
        assert whole["input"].early_threshold < whole["input"].threshold


def test_channels_are_those_of_numpy_and_only_where_wanted() -> None:
    images = pixels(17)
    seen = watched(images, means=["input", "stem.relu/Relu", "logits"], channel_maxima=["stem.conv/Conv", "logits"])
    expected = {name: values.reshape(*values.shape[:2], -1) for name, values in all_tensors(images).items()}
    for name, observation in seen.items():
        mean, largest = observation.channel_mean, observation.channel_max
        assert (mean is not None) == (name in ("input", "stem.relu/Relu", "logits"))
        assert (largest is not None) == (name in ("stem.conv/Conv", "logits"))
        if mean is not None:
            # Thirty float32 summands an image, and one rounding at the end: some units in the last place of the mean.
            scale = np.abs(expected[name]).mean(axis=(0, 2))
            assert mean.dtype == np.float32
            assert np.all(np.abs(mean - expected[name].mean(axis=(0, 2), dtype=np.float64)) < 1e-6 * scale)
        if largest is not None:
            assert np.array_equal(largest, np.abs(expected[name]).max(axis=(0, 2)))


@pytest.mark.parametrize("batch", ["batch", 4])
def test_padding_is_not_looked_at(batch: int | str) -> None:
    images = pixels(10)
    options: Any = {"method": CalibrationMethod.MSE, "means": ["input"], "channel_maxima": ["input"], "threads": 2}
    plain = observe(tiny(), EVERYTHING, batches(images, 5), 10, **options)
    for padding in (0.25, 1e4, np.nan):  # the larger ones overflow Exp
        padded = observe(tiny(batch), EVERYTHING, batches(images, 4, padding=padding), 10, **options)
        assert same(padded, plain)


def test_neither_threads_nor_batches_change_anything() -> None:
    images = pixels(23)
    options: Any = {"method": CalibrationMethod.ENTROPY, "means": EVERYTHING, "channel_maxima": EVERYTHING}
    first = watched(images, 1, threads=1, **options)
    assert all(same(first, watched(images, 6, threads=threads, **options)) for threads in (1, 2, 5, None))
    assert not same(first, watched(images[:-1], 1, threads=1, **options))


def test_the_model_is_left_as_it_is() -> None:
    model = tiny()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    watched(pixels(3), model=model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def bright(images: Array, index: int, sign: int) -> Array:
    """One image in which a convolution is far below zero, or so far above that Exp overflows, depending on its weights."""
    images = images.copy()
    images[index] = sign * 1e4
    return images


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 4, 16])
def test_a_nan_is_named_with_its_tensor_and_image(size: int, method: CalibrationMethod) -> None:
    images = pixels(12)
    images[9, 1, 2, 3] = -1e4  # makes some neighbour of the convolution negative enough for Sqrt
    expected = all_tensors(images)
    assert np.isnan(expected["root/Sqrt"][9]).any()
    with pytest.raises(CalibrationError, match=r"root/Sqrt \(Sqrt\) is not finite .* image 9\n"):
        watched(images, size, method=method, tensors=["stem.conv/Conv", "root/Sqrt", "grown/Exp"])


def test_infinity_is_as_bad_as_nan() -> None:
    images = bright(pixels(12), 7, 1)
    expected = all_tensors(images)["grown/Exp"]
    assert np.isinf(expected[7]).any()
    with pytest.raises(CalibrationError, match=r"grown/Exp \(Exp\) is not finite .* image 7\n"):
        watched(images, tensors=["stem.conv/Conv", "grown/Exp"])


@pytest.mark.parametrize("order", [1, -1])
def test_the_first_image_is_named_and_the_first_tensor_that_has_it(order: int) -> None:
    """Images 4 and 5 go through the graph in one run."""
    images = bright(pixels(8), 4, -1)  # Sqrt is NaN there, and so is Exp
    images[5, 0, 0, 0] = np.nan  # the input, and all that follows
    with pytest.raises(CalibrationError, match=r"^root/Sqrt \(Sqrt\) is not finite .* image 4\n"):
        watched(images, tensors=["input", "root/Sqrt"][::order])
    names = ["root/Sqrt", "grown/Exp"][::order]
    with pytest.raises(CalibrationError, match=rf"^{names[0]} \(\w+\) is not finite .* image 4\n"):
        watched(images, tensors=["input", *names])


def test_the_first_image_is_named_with_many_threads_and_two_broken_images() -> None:
    images = pixels(40)
    images[[11, 12, 13, 30], 0, 0, 0] = np.inf
    for _ in range(5):
        with pytest.raises(CalibrationError, match=r"input is not finite .* image 11\n"):
            watched(images, threads=4, tensors=["input"])


def test_progress_adds_up_to_the_images() -> None:
    steps: list[int] = []
    watched(pixels(11), 4, advance=steps.append)
    assert sum(steps) == 11
    assert max(steps) <= 4


def test_batches_are_read_only_a_little_ahead() -> None:
    """What is read and not done yet is what memory holds: a few runs, however many images there are."""
    done, ahead = 0, []

    def feeds() -> Iterator[tuple[dict[str, Array], int]]:
        for read, batch in enumerate(batches(pixels(200), 1)):
            ahead.append(read - done)
            yield batch

    def advance(count: int) -> None:
        nonlocal done
        done += count

    observe(tiny(), ["input"], feeds(), 200, method=CalibrationMethod.MINMAX, threads=2, advance=advance)
    assert max(ahead) <= 3  # two workers, and one that waits


def test_an_error_outside_ends_the_workers() -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        watched(pixels(30), advance=interrupt)
    assert threading.active_count() == before


@pytest.mark.parametrize("stated", [0, 9])
def test_more_images_than_stated_are_an_error(stated: int) -> None:
    with pytest.raises(CalibrationError, match=f"expected {stated} images and got 10"):
        observe(tiny(), ["input"], batches(pixels(10), 4), stated, method=CalibrationMethod.MSE)


def test_fewer_images_than_stated_are_what_is_left_when_some_cannot_be_read() -> None:
    """Ranges and means are those of the images that came."""
    images, options = pixels(10), {"method": CalibrationMethod.MSE, "means": ["input"]}
    fewer = observe(tiny(), ["input"], batches(images, 4), 11, **options)["input"]
    exact = watched(images, tensors=["input"], **options)["input"]
    assert (fewer.threshold, fewer.maximum) == (exact.threshold, exact.maximum)
    assert fewer.channel_mean is not None
    assert np.array_equal(fewer.channel_mean, exact.channel_mean)


@pytest.mark.parametrize("stated", [0, 5])
def test_no_images_are_an_error(stated: int) -> None:
    with pytest.raises(CalibrationError, match=f"expected {stated} images and got 0"):
        observe(tiny(), ["input"], iter(()), stated, method=CalibrationMethod.MINMAX)


def test_a_broken_image_has_the_name_that_the_caller_gives_it() -> None:
    images = pixels(8)
    images[5, 0, 0, 0] = np.inf
    with pytest.raises(CalibrationError, match=r"for the image photo-5\.png\n"):
        watched(images, tensors=["input"], name_of=lambda position: f"photo-{position}.png")


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_with_no_or_small_negative_values_has_a_threshold_for_255_steps(method: CalibrationMethod) -> None:
    images = pixels(17)
    seen = watched(images, method=method)
    expected = all_tensors(images)
    for name, observation in seen.items():
        histogram = MagnitudeHistogram()
        histogram.update(expected[name])
        least, largest = expected[name].min(), np.abs(expected[name]).max()
        if least >= 0:
            assert observation.shifted_threshold == threshold(histogram, method, levels=255)
        elif least < -largest / 2:
            assert observation.shifted_threshold is None
        assert observation.shifted_threshold == shifted_threshold(histogram, float(least), method)
    assert {observation.shifted_threshold is None for observation in seen.values()} == {True, False}


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        ("nowhere", "no tensor named 'nowhere'"),
        ("w", "no tensor named 'w'"),
        ("best", "int64"),
    ],
)
def test_a_tensor_that_cannot_be_calibrated_is_named(tensor: str, reason: str) -> None:
    with pytest.raises(CalibrationError, match=reason) as caught:
        watched(pixels(4), tensors=["input", tensor])
    assert tensor in caught.value.message


def tokens(batch: int | str = "batch") -> ir.Model:
    """Linear layers on tokens, as exporters write them: (N * 30, 3), and (30, N, 3)."""
    proto = onnx.parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["" : 19]>
        tokens (float[{batch},3,6,5] input) => (float[{batch},3] logits)
        <int64[3] all = {{0,3,-1}}, int64[2] flat = {{-1,3}}, int64[1] last = {{2}}>
        {{
          planes = Reshape(input, all)
          logits = ReduceMean<keepdims=0>(planes, last)
          turned = Transpose<perm=[0,2,1]>(planes)
          rows = Reshape(turned, flat)
          first = Transpose<perm=[2,0,1]>(planes)
        }}
        """
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def test_a_tensor_that_mixes_images_and_tokens_is_observed_whole() -> None:
    """Its rows are an image's own tokens where images come one at a time: numpy knows the channels from the input."""
    images = pixels(7)
    names = ["input", "rows", "first"]
    found = watched(images, model=tokens(), tensors=names, means=["rows"], channel_maxima=["rows"])
    for name in names:
        assert (found[name].minimum, found[name].maximum) == (images.min(), images.max())
    early = watched(images[:6], model=tokens(), tensors=names)
    assert {found[name].early_threshold for name in names} == {early["input"].threshold}
    mean, most = found["rows"].channel_mean, found["rows"].channel_max
    assert mean is not None
    assert most is not None
    np.testing.assert_allclose(mean, images.mean(axis=(0, 2, 3)), rtol=1e-5)  # float32 sums in another order
    np.testing.assert_array_equal(most, np.abs(images).max(axis=(0, 2, 3)))


def test_a_fixed_batch_that_hides_which_values_are_padding_is_refused() -> None:
    images = pixels(3)
    feeds = batches(images, 4, padding=9.0)
    with refused(CalibrationError, r"rows \(Reshape\) is float32 of shape \(120, 3\)", "free batch"):
        observe(tokens(4), ["rows"], feeds, 3, method=CalibrationMethod.MINMAX)


def test_feeds_that_do_not_fit_the_graph_are_refused() -> None:
    with pytest.raises(SkdeployError, match="input"):
        observe(tiny(), ["input"], batches(pixels(4)[:, :2], 4), 4, method=CalibrationMethod.MSE)


def test_an_impossible_percentile_is_refused_before_any_image_is_read() -> None:
    feeds = batches(pixels(4), 4)
    with pytest.raises(UsageError, match="percentile"):
        observe(tiny(), ["input"], feeds, 4, method=CalibrationMethod.PERCENTILE, percentile=101)
    assert next(feeds)[1] == 4


def test_candidates_have_the_thresholds_that_each_has_alone_on_the_first_images_and_on_all() -> None:
    images = pixels(8)
    found = watched(images, candidates=CANDIDATES)
    for candidate in CANDIDATES:
        options = {"method": candidate.method, "percentile": candidate.percentile or 99.99}
        alone, first = watched(images, **options), watched(images[:6], **options)
        for name in EVERYTHING:
            assert found[name].whole[candidate] == Fit(alone[name].threshold, alone[name].shifted_threshold)
            assert found[name].early[candidate].threshold == first[name].threshold == alone[name].early_threshold

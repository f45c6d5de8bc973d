"""The arithmetic of the experiment: against the definition worked out on paper, NumPy on all values, and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from skdeploy.attention.experiment import measure
from skdeploy.attention.gates import Gate, find_gates
from skdeploy.attention.report import half_width
from skdeploy.attention.tally import Tally, correlation, growth
from skdeploy.core.errors import IntegrityError
from tests.attention.networks import K3, K5, half, spec_of, subject, unit
from tests.attention.squares import IMAGES, SCALES, run
from tests.graphs.int8_networks import THREE
from tests.graphs.int8_networks import spec_of as tiny_card

SIDES = (4, 6, 8)  # of the square at these scales
BRIGHTNESS = np.array([255, 204, 102, 51]) / 255


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))


def by_hand(slopes: list[float], offsets: list[float]) -> NDArray[np.float64]:
    """a of branch 0, (scale, image, channel): a square of side k and brightness v has the mean v k^2 / 256."""
    mean = np.array(SIDES)[:, None, None] ** 2 * BRIGHTNESS[None, :, None] / 256
    return sigmoid(np.array(slopes) * 2 * mean + np.array(offsets))


def test_a_gate_of_zeros_gives_each_branch_exactly_half_and_nothing_grows() -> None:
    found = run(subject("fp32", unit([0, 0], [0, 0])))
    (curve,) = found.curves
    assert curve.differences == (0, 0, 0)
    assert curve.standard_errors == (0, 0, 0)
    assert curve.growth.mean == 0
    assert curve.growth.direction == "same"
    assert [profile.attention for profile in curve.profiles] == [(0.5, 0.5), (0.5, 0.5)]
    assert found.activity[0].spread == 0


def test_the_curve_of_a_gate_that_depends_on_the_mean_is_the_one_worked_out_on_paper() -> None:
    slopes, offsets = [-3.0, -1.0], [0.5, 0.0]
    found = run(subject("fp32", unit(slopes, offsets)))
    (curve,) = found.curves
    first = by_hand(slopes, offsets)
    difference = ((1 - first) - first).mean(2)  # branch 1 less branch 0, of each image
    # float32's rounding of a sigmoid, and of pixels divided by 255.
    np.testing.assert_allclose(curve.differences, difference.mean(1), atol=1e-6)
    np.testing.assert_allclose(curve.standard_errors, stats.sem(difference, axis=1), atol=1e-6)
    change = difference[-1] - difference[0]
    assert curve.growth.mean == pytest.approx(change.mean(), abs=1e-6)
    assert curve.growth.standard_error == pytest.approx(stats.sem(change), abs=1e-6)
    assert curve.growth.share == 1
    assert curve.growth.direction == "grows"
    np.testing.assert_allclose(curve.profiles[0].attention, 1 - first[0].mean(0), atol=1e-6)
    np.testing.assert_allclose(curve.profiles[1].attention, 1 - first[2].mean(0), atol=1e-6)
    assert found.activity[0].spread == pytest.approx(np.std(first[0], axis=0, ddof=1).mean(), abs=1e-6)


def test_which_branch_is_the_larger_comes_from_the_card_so_swapping_its_branches_flips_the_sign() -> None:
    straight = run(subject("fp32", unit([-3, -1], [0.5, 0])))
    swapped = run(subject("fp32", unit([-3, -1], [0.5, 0])), spec=spec_of(K5, K3))
    assert (straight.reference, swapped.reference) == (0, 1)
    assert straight.branches == ("3x3", "5x5 (3x3, dilation 2)")
    assert swapped.branches == ("5x5 (3x3, dilation 2)", "3x3")
    np.testing.assert_allclose(swapped.curves[0].differences, -np.array(straight.curves[0].differences), atol=1e-9)
    assert straight.curves[0].growth.direction == "grows"
    assert swapped.curves[0].growth.direction == "falls"


@pytest.mark.parametrize("fixed", ["batch", 3])
def test_the_batch_changes_nothing(fixed: int | str) -> None:
    expected = run(subject("fp32", unit([-3, -1], [0.5, 0])), batch=1)
    for batch in (2, 3, 64):
        found = run(subject("fp32", unit([-3, -1], [0.5, 0], batch=fixed)), batch=batch)
        # Sums in float64 of equal float32 numbers, in another order.
        np.testing.assert_allclose(found.curves[0].differences, expected.curves[0].differences, atol=1e-9)
        np.testing.assert_allclose(found.curves[0].standard_errors, expected.curves[0].standard_errors, atol=1e-9)


def test_fp16_follows_fp32_and_a_gate_that_fp16_lost_is_seen() -> None:
    slopes, offsets = [-3.0, -1.0], [0.5, 0.0]
    dead = half(unit([0, 0], offsets))  # what would be left of slopes that were rounded to zero
    fp32, fp16 = unit(slopes, offsets), half(unit(slopes, offsets))
    found = run(subject("fp32", fp32), subject("fp16", fp16), subject("fp16 dead", dead))
    good, bad = found.agreements
    # Logits below 2 and the sigmoid itself, both rounded to FP16: 2^-11 * (2 / 4 + 1), twice for a difference of weights.
    assert 0 < good.max_difference < 2e-3
    assert good.correlation is not None
    assert good.correlation > 0.9999
    usual, rounded, lost = found.activity
    assert usual.mean_abs_difference == 0
    assert 0 < rounded.mean_abs_difference < 1e-3
    assert rounded.spread == pytest.approx(usual.spread, rel=0.02)
    assert bad.correlation is None  # a flat curve correlates with nothing
    assert bad.max_difference > 0.1
    assert lost.spread == 0
    assert found.curve("fp16", 1).growth.direction == "grows"
    assert found.curve("fp16 dead", 1).growth.direction == "same"


def test_three_branches_are_each_compared_with_the_smallest_kernel() -> None:
    card, gate = tiny_card(THREE), Gate("stages.0.0", "", 3, 7)
    generator = np.random.default_rng(0)
    # (graph, scale, image, branch, channel): each channel's weights sum to one.
    a = generator.dirichlet([1, 2, 3], (2, 4, 30, 7)).transpose(0, 1, 2, 4, 3)
    tally = Tally(gate, 2, 4)
    for scale in range(4):
        for start in (0, 11, 22):
            tally.add(scale, [a[graph, scale, start : start + 11] for graph in range(2)])
    found = tally.unit(card, "", ["fp32", "int8"], {})
    assert found.branches == ("3x3", "5x5 (3x3, dilation 2)", "7x7 (3x3, dilation 3)")
    assert found.reference == 0
    assert found.compared == (1, 2)
    for branch in (1, 2):
        curves = a[:, :, :, branch].mean((2, 3)) - a[:, :, :, 0].mean((2, 3))
        for graph, name in enumerate(("fp32", "int8")):
            np.testing.assert_allclose(found.curve(name, branch).differences, curves[graph], atol=1e-9)
        agreement = next(x for x in found.agreements if x.branch == branch)
        assert agreement.correlation == pytest.approx(stats.pearsonr(curves[0], curves[1]).statistic)
        assert agreement.max_difference == pytest.approx(np.abs(curves[1] - curves[0]).max())
    assert found.activity[1].mean_abs_difference == pytest.approx(np.abs(a[1] - a[0]).mean())
    for graph in (0, 1):
        assert found.activity[graph].spread == pytest.approx(a[graph, 0].std(0, ddof=1).mean())


def test_a_change_within_its_95_percent_interval_is_no_growth() -> None:
    before = np.zeros(4)
    assert growth(before, np.array([3.0, 1, 2, 2])).direction == "grows"
    assert growth(before, np.array([-3.0, -1, -2, -2])).direction == "falls"
    noisy = growth(before, np.array([3.0, -2, 2, -1]))
    assert noisy.mean == 0.5
    assert noisy.share == 0.5
    assert noisy.direction == "same"


def test_correlation_is_told_only_where_it_says_something() -> None:
    up = np.array([0.0, 0.1, 0.4])
    assert correlation(up, -2 * up) == pytest.approx(-1)
    assert correlation(up[:2], up[:2]) is None  # two points always lie on a line
    assert correlation(up, np.full(3, 0.5)) is None


def test_branches_with_equal_kernels_are_told_apart_by_number() -> None:
    found = run(subject("fp32", unit([1, 1], [0, 0])), spec=spec_of(K3, K3))
    assert found.branches == ("branch 0: 3x3", "branch 1: 3x3")
    assert found.reference == 0


def test_a_card_with_another_number_of_branches_than_the_graph_is_refused() -> None:
    with pytest.raises(IntegrityError, match=r"has 3 branches, but stages\.0\.0 in the graph has 2"):
        run(subject("fp32", unit([1, 1], [0, 0])), spec=spec_of(K3, K5, K5))


def test_images_that_change_between_scales_are_refused() -> None:
    one = subject("fp32", unit([1, 1], [0, 0]))
    with pytest.raises(IntegrityError, match="scale 2 was measured on 1 images"):
        measure(
            [one], find_gates(one.model), spec_of(), lambda s: list(enumerate(IMAGES[: 1 if s > 1.5 else 4])), SCALES
        )


def test_the_interval_is_students() -> None:
    """``half_width`` against SciPy, and what it promises: the interval of 2,000 samples of 5 misses the truth in 5 %."""
    for images in (2, 3, 4, 5, 10, 25, 500, 1001, 1002, 50_000):
        assert half_width(images) == pytest.approx(stats.t.ppf(0.975, images - 1), abs=3e-6)
    generator = np.random.default_rng(3)
    missed = sum(growth(np.zeros(5), generator.normal(0, 1, 5)).direction != "same" for _ in range(2000))
    assert stats.binom.cdf(missed, 2000, 0.05) == pytest.approx(0.5, abs=0.4999)  # 71 to 131; the normal quantile: 240


def test_one_image_has_no_interval() -> None:
    with pytest.raises(ValueError, match="one image"):
        half_width(1)

"""Is a network better than chance: the binomial test against scipy's, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from skdeploy.images.chance import LEVEL, beats_guessing, is_hopeless, sentence, tail


@pytest.mark.parametrize("images", [1, 2, 7, 60, 280, 2000, 50_000])
@pytest.mark.parametrize("share", [0.001, 1 / 7, 0.5, 0.9, 1.0])
def test_the_tail_is_scipys(images: int, share: float) -> None:
    for right in {0, 1, images // 2, int(images * share), min(images, int(images * share) + 3), images}:
        # lgamma of 50,000 is 5e5, and its last digit 6e-11 of the exponent
        assert tail(right, images, share) == pytest.approx(
            stats.binom.sf(right - 1, images, share), rel=1e-9, abs=1e-300
        )


def test_one_guesser_in_a_hundred_is_taken_for_a_network_that_knows() -> None:
    """Networks that name a class at random on 280 images of 7 classes."""
    right = np.random.default_rng(0).binomial(280, 1 / 7, 20_000)
    taken = np.mean([beats_guessing(int(count), 280, 40) for count in right])
    assert 0.5 * LEVEL < taken <= 1.3 * LEVEL  # whole images: a little below; 20,000 tries are known to 0.07 %


def test_a_weak_network_is_not_a_guesser() -> None:
    assert beats_guessing(70, 280, 40)  # 25 % where guessing gives 14 %
    assert not beats_guessing(45, 280, 40)


def test_the_most_frequent_class_is_what_a_guesser_names() -> None:
    """90 % right is nothing where 90 % of the images are of one class."""
    assert beats_guessing(90, 100, 14)
    assert not beats_guessing(90, 100, 90)


def test_few_images_are_not_hopeless_and_images_of_one_class_are() -> None:
    assert not is_hopeless(1, 2, 1)
    assert is_hopeless(3, 280, 40)
    assert not is_hopeless(41, 280, 40)
    assert is_hopeless(280, 280, 280)
    assert "of one class" in sentence("a", 280, 280, 280)

"""Is a network right more often than chance? If it is not, its accuracy says nothing, and neither does a drop of it."""

from __future__ import annotations

from math import exp, lgamma, log
from typing import Final

LEVEL: Final = 0.01  # one network in a hundred that only guesses is taken for one that knows something
LEAST: Final = 1e-17  # of the sum so far: smaller terms of a tail change no digit of float64


def beats_guessing(right: int, images: int, most_frequent: int) -> bool:
    """Whether ``right`` of ``images`` is more than naming the same class every time explains, at 1 %.

    ``most_frequent``: images of the most frequent class. Guessing that one each time is right most often, so a network is
    held to its share: an exact binomial test, one-sided. Images of one class only never show it.
    """
    return tail(right, images, most_frequent / images) <= LEVEL if images else False


def is_hopeless(right: int, images: int, most_frequent: int) -> bool:
    """Whether more such images would not help: enough to see what a network knows, and this one is not above guessing."""
    enough = most_frequent == images or beats_guessing(images, images, most_frequent)
    return enough and right <= most_frequent


def tail(right: int, images: int, share: float) -> float:
    """Return the chance of ``right`` or more of ``images`` where each is right with the chance ``share``, in [0, 1]."""
    if right <= 0 or share >= 1:
        return 1.0
    if share <= 0:
        return 0.0
    if right <= images * share:  # the median of a binomial distribution is its mean, rounded down or up: half or more
        return 1.0 - _above(images - right + 1, images, 1 - share)
    return _above(right, images, share)


def _above(first: int, images: int, share: float) -> float:
    """The sum of the terms from ``first`` on, which is above the mean: each term is smaller than the one before it."""
    ways = lgamma(images + 1) - lgamma(first + 1) - lgamma(images - first + 1)
    term = exp(ways + first * log(share) + (images - first) * log(1 - share)) if first <= images else 0.0
    total = term
    for count in range(first, images):
        term *= (images - count) / (count + 1) * share / (1 - share)
        total += term
        if term <= LEAST * total:
            break
    return total


def sentence(name: str, right: int, images: int, most_frequent: int, word: str = "image") -> str:
    """Say what was found of ``name``, as a reason for judging nothing. ``word``: what one of the ``images`` is called."""
    if most_frequent == images:
        return f"all {images:,} {word}s are of one class, so {name} may know nothing of them and be right"
    return (
        f"{name} is right on {right:,} of {images:,} {word}s, no better than naming the most frequent class each time "
        f"({most_frequent:,})"
    )


CAUSES: Final = (
    "the labels may be in another order than the network's outputs, the inputs prepared otherwise than in training, or "
    "too few"
)
CHECK: Final = (
    "check the order of the classes (--class-order, or labels in the card) and the card's preprocessing: `skdeploy predict` "
    "shows what the network says of an image that you know"
)

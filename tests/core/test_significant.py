"""Figures as people read them."""

from __future__ import annotations

import pytest

from skdeploy.core.significant import significant


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.004821, "0.00482"),
        (0.0999, "0.0999"),
        (0.09996, "0.100"),
        (0.9996, "1.00"),
        (1.6244, "1.62"),
        (9.996, "10.0"),
        (99.96, "100"),
        (615.8, "616"),
        (1815.2, "1,820"),
        (12_296_000.0, "12,300,000"),
        (-0.25, "-0.250"),
    ],
)
def test_three_digits_count(value: float, text: str) -> None:
    assert significant(value) == text


def test_more_digits_if_asked() -> None:
    assert significant(1756.83, 4) == "1,757"
    assert significant(0.56789, 4) == "0.5679"

"""Lists in messages."""

from __future__ import annotations

from skdeploy.core.listing import some, some_lines


def test_few_names_are_all_there_and_many_are_counted() -> None:
    assert some([]) == ""
    assert some(["a", "b"], 2) == "a, b"
    assert some(["a", "b", "c", "d"], 2) == "a, b and 2 more"


def test_lines_are_set_in_and_the_rest_is_a_line() -> None:
    assert some_lines(["a", "b"], 2) == "  a\n  b"
    assert some_lines(["a", "b", "c"], 2) == "  a\n  b\n  ... and 1 more"

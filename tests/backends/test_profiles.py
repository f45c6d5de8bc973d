"""Which optimization profile takes a shape: by the rule, against a search of all that hold it."""

from __future__ import annotations

import pytest

from skdeploy.backends.profiles import Profile, choose_profile
from skdeploy.core.errors import UsageError

WIDE: Profile = {"images": ((1, 3, 8, 8), (4, 3, 16, 16), (8, 3, 32, 32))}


def of_batches(*limits: tuple[int, int, int]) -> tuple[Profile, ...]:
    return tuple({"images": tuple((batch, 3, 8, 8) for batch in limit)} for limit in limits)


@pytest.mark.parametrize("shape", WIDE["images"])
def test_shape_at_any_limit_of_the_profile_is_taken(shape: tuple[int, ...]) -> None:
    assert choose_profile({"images": shape}, [WIDE]) == 0


@pytest.mark.parametrize(
    ("shape", "place", "limits"),
    [((9, 3, 8, 8), "batch 9", "batch 1 to 8, best at 4"), ((1, 3, 8, 7), "width 7", "width 8 to 32, best at 16")],
)
def test_shape_outside_the_only_profile_is_told_the_limits(shape: tuple[int, ...], place: str, limits: str) -> None:
    with pytest.raises(UsageError, match=f"{place} is outside the engine's profile") as refusal:
        choose_profile({"images": shape}, [WIDE])
    assert limits in refusal.value.advice


@pytest.mark.parametrize(("batch", "number"), [(1, 0), (2, 1), (8, 1), (16, 1), (17, 2), (64, 2)])
def test_the_profile_that_holds_the_batch_is_chosen(batch: int, number: int) -> None:
    assert choose_profile({"images": (batch, 3, 8, 8)}, of_batches((1, 1, 1), (2, 8, 16), (17, 32, 64))) == number


@pytest.mark.parametrize(
    ("batch", "number"),
    [
        (2, 0),  # best there
        (3, 0),  # 3 / 2 < 8 / 3
        (4, 0),  # as far from 2 as from 8 in ratio: the first
        (5, 1),  # 5 / 2 > 8 / 5, though 5 - 2 = 8 - 5
        (8, 1),
    ],
)
def test_of_several_that_hold_it_the_one_best_at_the_nearest_is_chosen(batch: int, number: int) -> None:
    assert choose_profile({"images": (batch, 3, 8, 8)}, of_batches((1, 2, 8), (1, 8, 8))) == number


def test_batch_in_no_profile_is_told_all_of_them() -> None:
    with pytest.raises(UsageError, match="batch 5 is outside the engine's 2 profiles") as refusal:
        choose_profile({"images": (5, 3, 8, 8)}, of_batches((1, 2, 4), (8, 16, 32)))
    assert "batch 1 to 4, best at 2; or batch 8 to 32, best at 16" in refusal.value.advice


def test_engine_of_one_shape_tells_it() -> None:
    with pytest.raises(UsageError, match="batch 2 is outside") as refusal:
        choose_profile({"images": (2, 3, 8, 8)}, of_batches((1, 1, 1)))
    assert "the engine takes shape (1, 3, 8, 8)" in refusal.value.advice


def test_every_input_must_be_inside_one_and_the_same_profile() -> None:
    small, large = ((1, 4), (1, 4), (2, 4)), ((3, 4), (3, 4), (4, 4))
    profiles = [{"a": small, "b": large}, {"a": large, "b": large}]
    assert choose_profile({"a": (3, 4), "b": (4, 4)}, profiles) == 1
    with pytest.raises(UsageError) as refusal:
        choose_profile({"a": (3, 4), "b": (1, 4)}, profiles)
    assert "a: batch 1 to 2, best at 1; b: batch 3 to 4, best at 3; or a: " in refusal.value.advice

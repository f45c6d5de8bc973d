"""Which of the ways that were tried wins, and which are tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from skdeploy.accuracy.gate import PairedReport
from skdeploy.accuracy.statistics import Decision, Pairs
from skdeploy.core.errors import UsageError
from skdeploy.tuning.best import choose
from skdeploy.tuning.candidates import Candidate, Fallback, candidates
from skdeploy.tuning.report import Tried


def tried(
    decision: Decision,
    sqnr_db: float,
    *,
    fallback: Fallback = "fp16",
    share: float = 0.99,
    predicted_ms: float | None = None,
) -> Tried:
    pair = PairedReport(
        first="FP32",
        second="way",
        pairs=Pairs(both_right=90, only_first=1, only_second=1, both_wrong=8),
        mcnemar_p=1,
        drop=0,
        drop_low=-1,
        drop_high=1,
        confidence=95,
        agreement=1,
        decision=decision,
    )
    candidate = Candidate(calibration={"method": "mse"}, fallback=fallback)
    return Tried(
        candidate=candidate,
        name=candidate.name,
        sqnr_db=sqnr_db,
        int8_mac_share=share,
        pair=pair,
        predicted_ms=predicted_ms,
    )


def test_of_those_that_keep_the_budget_the_cheapest_wins_and_then_the_most_exact() -> None:
    good, better = tried("pass", 37), tried("pass", 38)
    assert choose([good, better]) is better
    assert choose([good, tried("fail", 50), tried("inconclusive", 49)]) is good
    assert choose([good, tried("pass", 50, fallback="fp32")]) is good
    assert choose([good, tried("pass", 50, share=0.8)]) is good
    fast, slow = tried("pass", 30, predicted_ms=1.0), tried("pass", 40, predicted_ms=1.2)
    assert choose([slow, fast]) is fast


def test_predictions_less_than_a_tenth_apart_are_equal() -> None:
    first, second = tried("pass", 30, predicted_ms=1.0), tried("pass", 40, predicted_ms=1.09)
    assert choose([first, second]) is second


def test_if_none_keeps_the_budget_the_most_exact_undecided_one_is_confirmed() -> None:
    undecided = tried("inconclusive", 30)
    assert choose([tried("fail", 50), undecided, tried("inconclusive", 29)]) is undecided
    failed = tried("fail", 20)
    assert choose([failed, tried("fail", 10)]) is failed


def test_all_methods_but_entropy_are_tried_with_each_fallback() -> None:
    names = [candidate.name for candidate in candidates(())]
    assert len(names) == len(set(names))
    assert not any("entropy" in name for name in names)
    assert {name.rsplit(", ", 1)[1] for name in names} == {"fp16 fallback", "fp32 fallback"}
    assert all(any(name.startswith(each) for name in names) for each in ("auto", "minmax", "percentile, 99.99", "mse"))
    assert names[0].startswith("auto, gptq, fp16")  # an export that is told nothing
    assert {candidate.calibration["method"] for candidate in candidates(("entropy",))} == {"entropy"}
    with pytest.raises(UsageError, match="--calib-method meanest does not exist"):
        candidates(("meanest",))


def test_a_candidate_says_the_options_that_make_it(tmp_path: Path) -> None:
    way = Candidate(
        calibration={"method": "percentile", "percentile": 99.999},
        fallback="fp32",
        keep=("^stem",),
        units=("stem",),
        regroup=4,
    )
    assert way.name == "percentile, 99.999, fp32 fallback, 1 kept, regroup 4"
    words = " ".join(way.words(tmp_path, None))
    assert words.endswith("--int8-fallback fp32 --int8-keep ^stem --regroup 4")
    assert "--calib-method percentile --calib-percentile 99.999" in words

"""Regular expressions that backtrack without end are refused in time; others are not tried twice."""

from __future__ import annotations

import pytest

from skdeploy.core import patterns
from skdeploy.core.errors import UsageError
from skdeploy.core.patterns import check_ends
from skdeploy.ir.placement import place
from skdeploy.passes.half import HalfPrecision
from tests.graphs.quantizable import graph

MODULES = ("stem.conv", "stages.0.0.selective_kernel.branches.1.conv.with_a_long_name")


@pytest.mark.parametrize(
    "pattern", [r"^(([a-z0-9_.])+)+$!", r"^(\w*[._]?)*!$", "[a-z._0-9]?" * 40 + "[a-z._0-9]" * 40 + "!"]
)
def test_a_pattern_without_end_is_refused_in_time(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    with pytest.raises(UsageError, match=r"takes more than 0\.2 s"):
        check_ends(pattern, MODULES)


@pytest.mark.parametrize(
    "pattern", [r"^stages\.1\.", r"\.gate", "^(a|b)$", r"^stages\.\d+\.(\d+)\.conv(1|2)+.*$", "()*+?"[:3]]
)
def test_ordinary_patterns_pass(pattern: str) -> None:
    check_ends(pattern, MODULES)


@pytest.mark.parametrize("pattern", ["(", "a**", "a{99999999999999999999}"])
def test_what_is_no_pattern_is_named(pattern: str) -> None:
    with pytest.raises(UsageError, match="is not a regular expression"):
        check_ends(pattern, MODULES)


def test_modules_that_are_kept_go_through_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    model = graph("sknet")
    for call in (lambda: place(model, ("^(([a-z0-9_.])+)+$!",)), lambda: HalfPrecision(["^(([a-z0-9_.])+)+$!"])(model)):
        with pytest.raises(UsageError, match="takes more than"):
            call()


def test_a_pattern_without_a_module_is_answered_with_modules_that_are_there() -> None:
    with pytest.raises(UsageError, match="--keep-fp32 'nothing' matches no module") as error:
        patterns.modules_matched(["nothing"], {"", "stem.conv", "classifier"}, "--keep-fp32 ")
    assert "classifier, stem.conv" in error.value.advice

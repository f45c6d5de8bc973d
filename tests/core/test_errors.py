"""Every kind of error ends the command with the exit code that the documentation lists, and says what to do next."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from skdeploy.__main__ import main
from skdeploy.core import errors

CODES = {
    errors.UsageError: 2,
    errors.CardError: 2,
    errors.WeightsError: 2,
    errors.DependencyError: 3,
    errors.ExportError: 4,
    errors.PassError: 5,
    errors.PrecisionError: 5,
    errors.CalibrationError: 6,
    errors.EngineError: 7,
    errors.ParityError: 8,
    errors.IntegrityError: 9,
    errors.AccuracyError: 10,
}


def family(kind: type[errors.SkdeployError]) -> Iterator[type[errors.SkdeployError]]:
    for child in kind.__subclasses__():
        yield child
        yield from family(child)


def test_no_kind_of_error_is_without_a_code() -> None:
    ours = {kind for kind in family(errors.SkdeployError) if kind.__module__ == errors.__name__}
    assert ours == set(CODES)
    assert all("exit_code" not in vars(kind) for kind in set(family(errors.SkdeployError)) - ours)  # a parent's holds


@pytest.mark.parametrize(("kind", "code"), CODES.items(), ids=lambda value: getattr(value, "__name__", str(value)))
def test_the_command_ends_with_the_code_of_the_error(
    kind: type[errors.SkdeployError], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise kind("it broke [/here]", advice="mend it")

    monkeypatch.setattr("skdeploy.inspect.diagnosis.diagnose", fail)
    monkeypatch.setattr(sys, "argv", ["skdeploy", "doctor"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: it broke [/here]\n  -> mend it\n"


def test_an_error_as_text_is_what_happened_and_what_to_do() -> None:
    assert str(errors.UsageError("it broke", advice="mend it")) == "it broke\nmend it"
    assert str(errors.UsageError("it broke")) == "it broke"

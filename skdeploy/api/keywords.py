"""The options of an export as keywords: those of the command line, by the same names, with Python's values.

They are declared where a station declares them. Only what Python says in another way is named here: ``precision`` is one word,
and ``imgsz`` may be a pair.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, get_origin

from pydantic import TypeAdapter, ValidationError

from skdeploy.core.errors import UsageError
from skdeploy.core.options import flags_of, keyword_of
from skdeploy.core.spec import Precision
from skdeploy.line.accuracy_options import AccuracyOptions
from skdeploy.line.building import gibibytes
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.formats import FORMATS
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions, batch_profile
from skdeploy.line.rewrites import REWRITES
from skdeploy.line.stations.half import HalfOptions
from skdeploy.passes.trace_options import TraceOptions

Size = int | tuple[int, int]

OWN: Final[dict[str, tuple[Any, Any, str]]] = {
    "precision": (Precision, Precision.FP32, '"fp32", "fp16" or "int8".'),
    "min_batch": (int | None, None, "The engine's smallest batch; None for 1."),
    "opt_batch": (int | None, None, "The batch that the engine is tuned for; None for 8."),
    "max_batch": (int | None, None, "The engine's largest batch; None for 32."),
    "imgsz": (Size | None, None, "Input size in pixels: both sides, or (height, width); None for the card's."),
    "workspace": (float | None, None, "Limit of the builder's scratch memory, GiB."),
}


@dataclass(frozen=True)
class Keyword:
    """One keyword: its type and default, what it is for, and the models that have it, with the field's name there."""

    kind: Any
    default: Any
    help: str
    choices: Callable[[], tuple[str, ...]] | None = None
    places: tuple[tuple[str, str], ...] = ()


def export_keywords() -> dict[str, Keyword]:
    """Every keyword of an export, in the order of the command line."""
    found = {name: Keyword(*said) for name, said in OWN.items()}
    for part, model in _models().items():
        for name, kind, default, flag in flags_of(model):
            key = keyword_of(name, flag)
            known = found.get(key)
            places = (*(known.places if known else ()), (part, name))
            found[key] = Keyword(kind, default, flag.help, flag.choices, places)
    return found


def export_options(model: str, given: Mapping[str, Any]) -> ExportOptions:
    """What these keywords ask for. Raises UsageError for an unknown one, or a value of another kind."""
    known = export_keywords()
    parts: dict[str, dict[str, Any]] = {part: {} for part in _models()}
    own: dict[str, Any] = {name: default for name, (_, default, _) in OWN.items()}
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise UsageError(
                f"export has no keyword {name!r}",
                advice=f"did you mean {close[0]!r}?" if close else "`help(skdeploy.export)` lists them",
            )
        keyword = known[name]
        checked = _checked(name, keyword, value)
        if name in OWN:
            own[name] = checked
        for part, field in keyword.places:
            parts[part][field] = checked
    size = own["imgsz"]
    calibration = CalibrationOptions(**parts.pop("calibration"))
    return ExportOptions(
        model,
        **parts.pop("export"),
        precision=own["precision"],
        trace=TraceOptions(**parts.pop("trace")),
        half=HalfOptions(**parts.pop("half")),
        int8=Int8Options(**parts.pop("int8"), calibration=calibration),
        accuracy=AccuracyOptions(**parts.pop("accuracy")),
        lowering={name: FORMATS[name].options(**parts.pop(f"to {name}")) for name in FORMATS},
        rewrites={name: REWRITES[name].options(**parts.pop(name)) for name in REWRITES},
        profile=batch_profile(own["min_batch"], own["opt_batch"], own["max_batch"]),
        workspace_bytes=gibibytes("workspace", own["workspace"]),
        image_size=(size, size) if isinstance(size, int) else size,
    )


def signature() -> inspect.Signature:
    """``export``'s own, for ``help`` and completion."""
    first = inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="str | Path")
    rest = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_plain(keyword.default))
        for name, keyword in export_keywords().items()
    ]
    progress = inspect.Parameter("progress", inspect.Parameter.KEYWORD_ONLY, default=True)
    return inspect.Signature([first, *rest, progress])


def documentation() -> Iterator[str]:
    """A line for each keyword."""
    for name, keyword in export_keywords().items():
        yield f"    {name}: {keyword.help}"


def _models() -> dict[str, Any]:
    return {
        "export": ExportOptions,
        "trace": TraceOptions,
        "half": HalfOptions,
        **{f"to {name}": lowering.options for name, lowering in FORMATS.items()},
        **{name: rewrite.options for name, rewrite in REWRITES.items()},
        "int8": Int8Options,
        "calibration": CalibrationOptions,
        "accuracy": AccuracyOptions,
    }


def _checked(name: str, keyword: Keyword, value: Any) -> Any:
    """The value as its option has it: a str may stand for a path, an enum's value, or one of several."""
    if get_origin(keyword.kind) is tuple and isinstance(value, str):
        value = (value,)
    if keyword.choices and value not in keyword.choices():
        raise UsageError(f"{name}={value!r}: must be one of {', '.join(map(repr, keyword.choices()))}")
    try:
        return TypeAdapter(keyword.kind).validate_python(value)
    except ValidationError as error:
        said = error.errors(include_url=False)[0]["msg"]
        raise UsageError(f"{name}={value!r}: {said[0].lower()}{said[1:]}") from error


def _plain(default: Any) -> Any:
    return getattr(default, "value", default)

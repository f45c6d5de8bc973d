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
from skdeploy.core.options import all_flags_of, filled
from skdeploy.core.spec import Precision
from skdeploy.line.building import gibibytes
from skdeploy.line.formats import FORMATS
from skdeploy.line.options import ExportOptions, batch_profile
from skdeploy.line.rewrites import REWRITES

Size = int | tuple[int, int]

OWN: Final[dict[str, tuple[Any, Any, str]]] = {
    "precision": (Precision, Precision.FP32, ", ".join(f'"{name}"' for name in FORMATS) + "."),
    "min_batch": (int | None, None, "The engine's smallest batch; None for 1."),
    "opt_batch": (int | None, None, "The batch that the engine is tuned for; None for 8."),
    "max_batch": (int | None, None, "The engine's largest batch; None for 32."),
    "imgsz": (Size | None, None, "Input size in pixels: both sides, or (height, width); None for the card's."),
    "workspace": (float | None, None, "Most scratch memory for a kernel, in GiB."),
}


@dataclass(frozen=True)
class Keyword:
    """One keyword: its type and default, and what it is for."""

    kind: Any
    default: Any
    help: str
    choices: Callable[[], tuple[str, ...]] | None = None


def export_keywords() -> dict[str, Keyword]:
    """Every keyword of an export, in the order of the command line."""
    found = {name: Keyword(*said) for name, said in OWN.items()}
    models: list[type[Any]] = [
        ExportOptions,
        *(made.options for made in FORMATS.values()),
        *(made.options for made in REWRITES.values()),
    ]
    for model in models:
        for key, kind, default, flag, _ in all_flags_of(model):
            found.setdefault(key, Keyword(kind, default, flag.help, flag.choices))
    return found


def export_options(model: str, given: Mapping[str, Any]) -> ExportOptions:
    """Make the options of these keywords. Raises UsageError for an unknown one, or a value of another kind."""
    known = export_keywords()
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise UsageError(
                f"export has no keyword {name!r}",
                advice=f"did you mean {close[0]!r}?" if close else "`help(skdeploy.export)` lists them",
            )
    values = {name: _checked(name, known[name], value) for name, value in given.items()}
    own = {name: values.get(name, default) for name, (_, default, _) in OWN.items()}
    size = own["imgsz"]
    return ExportOptions(
        model,
        **filled(ExportOptions, values),
        precision=own["precision"],
        lowering={name: made.options(**filled(made.options, values)) for name, made in FORMATS.items()},
        rewrites={name: made.options(**filled(made.options, values)) for name, made in REWRITES.items()},
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

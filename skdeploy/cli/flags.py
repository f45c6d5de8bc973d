"""Typer's options from options that are declared once, in models: a verb names the models it takes, as parameters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from skdeploy.core.options import Flag, StationOptions, all_flags_of, filled, flag_name
from skdeploy.core.panel import Panel


@dataclass(frozen=True)
class FlagsOf:
    """``Annotated[dict[str, Any], FlagsOf(model)]``: a verb's parameter that gets the values of a model's flags, by field."""

    model: type[Any]


def flattened(
    verb: Callable[..., None], registries: Mapping[str, Mapping[str, type[StationOptions]]] | None = None
) -> Callable[..., None]:
    """The verb with each parameter that is a ``FlagsOf`` replaced by the model's flags; it is called with their values.

    ``registries`` are parameters that get a dictionary of models, by name, such as the passes of a registry. A flag that
    several models have is given to all of them.
    """
    hints = get_type_hints(verb, include_extras=True)
    makers: dict[str, Callable[[Mapping[str, Any]], Any]] = {}
    shown: dict[str, inspect.Parameter] = {}
    kinds: dict[str, Any] = {}
    for parameter in inspect.signature(verb).parameters.values():
        name, models = parameter.name, dict((registries or {}).get(parameter.name, {}))
        hint = hints[name]
        flags = next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, FlagsOf)), None)
        if models:
            makers[name] = functools.partial(_made, models)
        elif flags is not None:
            models = {name: flags.model}
            makers[name] = functools.partial(filled, flags.model)
        else:
            shown[name] = parameter.replace(annotation=hint)
        for model in models.values():
            for key, kind, default, flag, panel in all_flags_of(model):
                shown.setdefault(key, _parameter(key, kind, default, flag, panel))
                kinds.setdefault(key, kind)

    @functools.wraps(verb)
    def run(**given: Any) -> None:
        plain = {name: value for name, value in given.items() if name in hints and name not in makers}
        values = {key: _value(kind, given[key]) for key, kind in kinds.items()}
        verb(**plain, **{name: make(values) for name, make in makers.items()})

    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what Typer reads
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in shown.values()]
    )
    run.__annotations__ = {name: parameter.annotation for name, parameter in shown.items()}
    return run


def _made(models: Mapping[str, type[Any]], given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: model(**filled(model, given)) for name, model in models.items()}


def _value(kind: Any, value: Any) -> Any:
    """Convert what Typer read to the field's type."""
    if get_origin(kind) is tuple:
        return tuple(value or ())
    return kind(value) if isinstance(kind, type) and issubclass(kind, Enum) else value


def _parameter(key: str, kind: Any, default: Any, flag: Flag, panel: Panel | None) -> inspect.Parameter:
    names = flag.names or ((flag_name(key, flag),) if kind is bool else ())
    option = typer.Option(*names, help=flag.help, metavar=flag.metavar, rich_help_panel=panel, hidden=flag.hidden)
    return inspect.Parameter(
        key,
        inspect.Parameter.KEYWORD_ONLY,
        default=default.value if isinstance(default, Enum) else None if default == () else default,
        annotation=Annotated[Literal[flag.choices()] if flag.choices else _typers(kind), option],
    )


def _typers(kind: Any) -> Any:
    """The field's type as Typer takes it: choices as texts, tuples as lists."""
    if get_origin(kind) is tuple:
        return list[str] | None
    if get_origin(kind) is Literal:
        return Literal[tuple(choice.value if isinstance(choice, Enum) else choice for choice in get_args(kind))]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return Literal[tuple(choice.value for choice in kind)]
    parts = get_args(kind)
    if NoneType in parts:
        (one,) = (part for part in parts if part is not NoneType)
        return _typers(one) | None
    return kind

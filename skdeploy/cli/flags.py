"""Typer's options from options that are declared once, in models: a verb names the models it takes, as parameters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from skdeploy.core.options import StationOptions, flag_name, flags_of, keyword_of


@dataclass(frozen=True)
class FlagsOf:
    """``Annotated[dict[str, Any], FlagsOf(model)]``: a verb's parameter that gets the values of a model's flags, by field."""

    model: type[Any]


def flattened(
    verb: Callable[..., None], registries: Mapping[str, Mapping[str, type[StationOptions]]] | None = None
) -> Callable[..., None]:
    """The verb with each parameter that is a model of options replaced by the model's flags; it is called with the models.

    ``registries`` are parameters that get a dictionary of models, by name, such as the passes of a registry. A flag that
    several models have is given to all of them.
    """
    hints = get_type_hints(verb, include_extras=True)
    makers: dict[str, Callable[[Mapping[str, Any]], Any]] = {}
    shown: dict[str, inspect.Parameter] = {}
    for parameter in inspect.signature(verb).parameters.values():
        name, models = parameter.name, dict((registries or {}).get(parameter.name, {}))
        hint = hints[name]
        flags = next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, FlagsOf)), None)
        if models:
            makers[name] = functools.partial(_made, models)
        elif flags is not None:
            models = {name: flags.model}
            makers[name] = functools.partial(_values, flags.model)
        elif isinstance(hint, type) and issubclass(hint, StationOptions):
            models = {name: hint}
            makers[name] = functools.partial(_one_made, hint)
        else:
            shown[name] = parameter.replace(annotation=hint)
        for model in models.values():
            shown |= {one.name: one for one in _parameters(model) if one.name not in shown}

    @functools.wraps(verb)
    def run(**given: Any) -> None:
        plain = {name: value for name, value in given.items() if name in hints and name not in makers}
        verb(**plain, **{name: make(given) for name, make in makers.items()})

    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what Typer reads
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in shown.values()]
    )
    run.__annotations__ = {name: parameter.annotation for name, parameter in shown.items()}
    return run


def _made(models: Mapping[str, type[Any]], given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _one_made(model, given) for name, model in models.items()}


def _one_made(model: type[Any], given: Mapping[str, Any]) -> Any:
    return model(**_values(model, given))


def _values(model: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, kind, _, flag in flags_of(model):
        value = given[keyword_of(name, flag)]
        if get_origin(kind) is tuple:
            value = tuple(value or ())
        elif isinstance(kind, type) and issubclass(kind, Enum):
            value = kind(value)
        values[name] = value
    return values


def _parameters(model: type[Any]) -> Iterator[inspect.Parameter]:
    for name, kind, default, flag in flags_of(model):
        names = flag.names or ((flag_name(name, flag),) if kind is bool else ())
        option = typer.Option(*names, help=flag.help, metavar=flag.metavar, rich_help_panel=flag.panel or model.panel)
        shown = default.value if isinstance(default, Enum) else None if default == () else default
        yield inspect.Parameter(
            keyword_of(name, flag),
            inspect.Parameter.KEYWORD_ONLY,
            default=shown,
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

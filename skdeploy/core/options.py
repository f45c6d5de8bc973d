"""Options of a station or a verb, each declared once: a field of a frozen model that carries its flag and its help.

From here come the command line's options (``cli/flags.py``), the record in the manifest, and the command that makes an
artifact again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from keyword import iskeyword
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, Self, get_origin, get_type_hints

from pydantic import ConfigDict, JsonValue

from skdeploy.core.architecture import Frozen
from skdeploy.core.panel import Panel


@dataclass(frozen=True)
class Flag:
    """How a field is given on the command line.

    ``names``: the flags, if they are not ``--`` and the field's name; a pair ``--x/--no-x`` is one name. ``kept``: whether the
    command that makes an artifact again repeats it; where a file of the user's own lies is not kept. ``panel``: the heading in
    the help, if it is not the one of all options of its model. ``choices``: the values that there are, where a registry has
    them. ``hidden``: the help leaves it out.
    """

    help: str
    names: tuple[str, ...] = ()
    metavar: str | None = None
    kept: bool = True
    panel: Panel | None = None
    choices: Callable[[], tuple[str, ...]] | None = None
    hidden: bool = False


class StationOptions(Frozen):
    """Base of all options. A field without a ``Flag`` is for Python alone, but for a model of more options, whose flags are
    given beside these. ``panel``: their heading in the help.
    """

    panel: ClassVar[Panel | None] = None
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    def record(self) -> dict[str, JsonValue]:
        """All options as JSON, for the manifest: equal records, equal work."""
        return self.model_dump(mode="json")

    @classmethod
    def of_record(cls, record: Mapping[str, JsonValue]) -> Self:
        """The options that a record has, of a station that keeps more than these. Raises pydantic's ValidationError."""
        known = {name: record[name] for name, _, _, _ in flags_of(cls) if name in record}
        return cls.model_validate_json(json.dumps(known))

    def check(self) -> None:
        """Raises UsageError for what cannot be or contradicts itself."""

    def check_source(self, model: str, *, has_scales: bool) -> None:
        """Raises UsageError for what does not go with the network that ``model`` names.

        ``has_scales``: its graph is quantized already, with scales of its own.
        """


class Options(Protocol):
    """The part of options that a station needs."""

    def record(self) -> dict[str, JsonValue]: ...


NoOptions = StationOptions


def flags_of(options: type[Any]) -> Iterator[tuple[str, Any, Any, Flag]]:
    """Of each field that the command line has, in their order: its name, type, default and flag.

    ``options`` is a model of this kind, or a dataclass with such fields.
    """
    hints = get_type_hints(options, include_extras=True)
    for name, default in _defaults(options):
        extras = hints[name].__metadata__ if get_origin(hints[name]) is Annotated else ()
        flag = next((extra for extra in extras if isinstance(extra, Flag)), None)
        if flag is not None:
            yield name, hints[name].__origin__, default, flag


def parts_of(options: type[Any]) -> Iterator[tuple[str, type[StationOptions]]]:
    """The fields that are models of options themselves."""
    hints = get_type_hints(options)
    for name, _ in _defaults(options):
        if isinstance(hints[name], type) and issubclass(hints[name], StationOptions):
            yield name, hints[name]


def all_flags_of(options: type[Any]) -> Iterator[tuple[str, Any, Any, Flag, Panel | None]]:
    """Of each flag, also of parts: its keyword, type and default, the flag, and its heading in the help."""
    for name, kind, default, flag in flags_of(options):
        yield keyword_of(name, flag), kind, default, flag, flag.panel or options.panel
    for _, part in parts_of(options):
        yield from all_flags_of(part)


def filled(options: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a model, and of its parts, from values by keyword: those of several models are given to each."""
    own = {name: keyword_of(name, flag) for name, _, _, flag in flags_of(options)}
    parts = {name: part(**filled(part, given)) for name, part in parts_of(options)}
    return {name: given[key] for name, key in own.items() if key in given} | parts


def flags_given(options: Any) -> Iterator[str]:
    """The flags, also of parts, that are not at their defaults."""
    for name, _, default, flag in flags_of(type(options)):
        if getattr(options, name) != default:
            yield flag_name(name, flag)
    for name, _ in parts_of(type(options)):
        yield from flags_given(getattr(options, name))


def _defaults(options: type[Any]) -> Iterator[tuple[str, Any]]:
    if is_dataclass(options):
        for entry in fields(options):
            made = entry.default_factory
            yield entry.name, entry.default if made is MISSING else made()
    else:
        for name, field in options.model_fields.items():
            yield name, field.get_default(call_default_factory=True)


def flag_name(field: str, flag: Flag) -> str:
    """The first of its names."""
    return flag.names[0] if flag.names else "--" + field.replace("_", "-")


def keyword_of(field: str, flag: Flag) -> str:
    """The flag's first name as Python writes it, as ``for_``: the fields of two models may have the same name."""
    name = flag_name(field, flag).partition("/")[0].removeprefix("--").replace("-", "_")
    return f"{name}_" if iskeyword(name) else name


def words_of(options: Any) -> Iterator[str]:
    """The words of a command line that gives these options, if they are kept and not at their defaults."""
    for name, _, default, flag in flags_of(type(options)):
        value = getattr(options, name)
        if flag.kept and value != default:
            yield from _words(flag_name(name, flag), value)


def _words(name: str, value: Any) -> Iterator[str]:
    yes, _, no = name.partition("/")
    if isinstance(value, bool):
        yield yes if value else no
    elif isinstance(value, tuple):
        for one in value:
            yield from (yes, _text(one))
    elif value is not None:
        yield from (yes, _text(value))


def _text(value: Any) -> str:
    return value.as_posix() if isinstance(value, Path) else f"{value:g}" if isinstance(value, float) else str(value)

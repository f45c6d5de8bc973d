"""Options from a file: ``skdeploy.toml``, or ``[tool.skdeploy]`` of ``pyproject.toml``, in the working directory alone.

A table has the name of a verb, its keys are the long flags' names. It becomes click's ``default_map``, so the command line and
environment variables win, and a verb that another package registers has its table too. A file in a parent folder never applies:
what a command does is seen where it is typed. The Python API reads no file.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from skdeploy.cli.arguments import IMAGE_SIZE
from skdeploy.core.errors import UsageError
from skdeploy.core.files import read_file
from skdeploy.core.toml_reasons import unreadable

OWN: Final = "skdeploy.toml"
PROJECT: Final = "pyproject.toml"
MAX_BYTES: Final = 1 << 20  # a few lines
CODE: Final = ("metric",)  # options that name code to run: a folder that somebody else made must not choose it
KINDS: Final = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def read_tables(folder: Path, verbs: Collection[str]) -> tuple[str, Mapping[str, Any]]:
    """The file that holds options, "" if there is none, and its tables by verb. Raises UsageError."""
    for name in (OWN, PROJECT):
        path = folder / name
        try:
            content = tomllib.loads(read_file(path, MAX_BYTES).decode())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UsageError(f"cannot read {name}: {error.strerror}", advice="correct it, or remove it") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"cannot read {name}: {unreadable(error)}", advice="correct it, or remove it") from error
        tools = content if name == OWN else content.get("tool", {})
        tables = tools if name == OWN else tools.get("skdeploy") if isinstance(tools, dict) else None
        if tables is None:
            continue
        where = name if name == OWN else f"{name}, [tool.skdeploy]"
        if not isinstance(tables, dict):
            raise UsageError(
                f"{where}: not a table", advice="give a table for each verb, such as [tool.skdeploy.export]"
            )
        for verb, table in tables.items():
            if verb not in verbs:
                raise UsageError(f"{where}: no verb named {verb!r}", advice=_near(verb, verbs, "verbs"))
            if not isinstance(table, dict):
                raise UsageError(f"{where}: {verb} is not a table", advice=f"give [{verb}], and its options below")
        return where, tables
    return "", {}


def defaults(where: str, verb: str, table: Mapping[str, Any], parameters: Sequence[Any]) -> dict[str, Any]:
    """The table's values by the names of the verb's parameters. Raises UsageError for an unknown key or another type."""
    options = {
        flag.removeprefix("--"): parameter
        for parameter in parameters
        if parameter.param_type_name == "option" and parameter.expose_value
        for flag in parameter.opts
        if flag.startswith("--")
    }
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key not in options:
            raise UsageError(
                f"{where}: [{verb}] has no option {key!r}", advice=_near(key, options, f"`skdeploy {verb} -h`")
            )
        if key in CODE:
            raise UsageError(
                f"{where}: [{verb}] has {key!r}, which runs code and so must be typed",
                advice=f"remove it, and give --{key} on the command line",
            )
        if options[key].name in found:
            raise UsageError(f"{where}: [{verb}] gives {key!r} twice, by two names", advice="leave one of them out")
        found[options[key].name] = _checked(f"{where}: [{verb}] {key}", value, options[key])
    return found


def from_file(context: Any) -> str:
    """The options that a verb's context took from its file, as they would be typed; "" for none."""
    words: list[str] = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name)
        if source is None or source.name != "DEFAULT_MAP":
            continue
        value = context.default_map[parameter.name]
        flag = next(name for name in parameter.opts if name.startswith("--"))
        if isinstance(value, bool):
            words.append(flag if value else (parameter.secondary_opts or [f"{flag} false"])[0])
        else:
            words += [f"{flag} {one}" for one in (value if isinstance(value, list) else [value])]
    return " ".join(words)


def typed(names: Iterable[str]) -> list[str]:
    """Which of these options the command line gives."""
    from typer.main import get_current_context  # type: ignore[attr-defined]  # click's, which Typer does not export

    context = get_current_context()
    sources = {name: context.get_parameter_source(name) for name in names}
    return [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]


def _checked(place: str, value: Any, parameter: Any) -> Any:
    if parameter.multiple:
        if not isinstance(value, list):
            raise UsageError(f"{place}: {value!r} is not a list", advice="it may be given several times: write [...]")
        return [_one(place, each, parameter) for each in value]
    return _one(place, value, parameter)


def _one(place: str, value: Any, parameter: Any) -> Any:
    choices = parameter.type_descriptor.choices
    kind = _kind(parameter)
    if parameter.metavar == IMAGE_SIZE and type(value) is int:
        value = str(value)
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
        raise UsageError(f"{place}: {value!r} is not {KINDS[kind]}", advice=f"give {KINDS[kind]}")
    if choices is not None and value not in choices:
        raise UsageError(
            f"{place}: {value!r} is not one of its values", advice=_near(str(value), map(str, choices), "values")
        )
    return float(value) if kind is float else value


def _kind(parameter: Any) -> type:
    annotation = parameter.type_descriptor.annotation
    if parameter.multiple:
        (annotation,) = annotation.__args__
    return annotation if annotation in KINDS else str


def _near(name: str, known: Any, rest: str) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"{rest}: {', '.join(names)}" if len(names) <= 20 else f"see {rest}"

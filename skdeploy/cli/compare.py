"""``skdeploy compare OLD NEW``, the old name of ``skdeploy evaluate NEW --against OLD``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from skdeploy.cli.evaluate import evaluate


def compare(**given: Any) -> None:
    """Old name of `skdeploy evaluate NEW --against OLD`, with the same options."""
    evaluate(against=str(given.pop("old")), **given)


def _signature() -> inspect.Signature:
    """The signature of evaluate with OLD as an argument in place of ``--against``."""
    hints = get_type_hints(evaluate, include_extras=True)
    old = Annotated[Path, typer.Argument(help="Bundle that NEW would replace.")]
    parameters = [inspect.Parameter("old", inspect.Parameter.KEYWORD_ONLY, annotation=old)]
    for name, parameter in inspect.signature(evaluate).parameters.items():
        if name != "against":
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))
    return inspect.Signature(parameters)


compare.__signature__ = _signature()  # type: ignore[attr-defined]  # what Typer reads
compare.__annotations__ = {name: one.annotation for name, one in _signature().parameters.items()}

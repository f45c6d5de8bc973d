"""Problems of a file that a person wrote or changed, ranges or a recipe, in words."""

from __future__ import annotations

from typing import Final

from pydantic import ValidationError

from skdeploy.core.spec import Frozen
from skdeploy.core.toml_reasons import shown_key, shown_value

PROBLEMS_SHOWN: Final = 5


def explain(error: ValidationError, model: type[Frozen]) -> str:
    """List what is wrong in a file, one line each: the field, why, and its value; for an unknown key, the nearest known one."""
    import difflib

    problems = error.errors(include_url=False)
    lines = []
    for problem in problems[:PROBLEMS_SHOWN]:
        where = shown_key(problem["loc"]) or "file"
        given = problem["input"]
        shown = (
            f" (given {shown_value(given)})"
            if isinstance(given, str | int | float) and problem["type"] != "json_invalid"
            else ""
        )
        reason = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            keys = (
                [field.alias or name for name, field in model.model_fields.items()] if len(problem["loc"]) == 1 else []
            )
            nearest = difflib.get_close_matches(str(problem["loc"][-1]), keys, n=1, cutoff=0.5)
            reason, shown = "unknown key" + (f", did you mean {nearest[0]!r}?" if nearest else ""), ""
        elif problem["type"] == "missing":
            reason, shown = "missing", ""
        lines.append(f"  {where}: {reason}{shown}")
    if len(problems) > PROBLEMS_SHOWN:
        lines.append(f"  and {len(problems) - PROBLEMS_SHOWN} more")
    return "\n".join(lines)

"""Finds a card by name or path and turns it into a ModelSpec. No code runs from a card."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from skdeploy.core.architecture import SPECS, DescribedSpec, ModuleSpec
from skdeploy.core.errors import CardError
from skdeploy.core.packaged import packaged
from skdeploy.core.spec import ModelSpec
from skdeploy.core.toml_reasons import read_toml, shown_key, shown_value

ABOUT = "a card is a TOML file, see models/README.md"


def load_card(name_or_path: str) -> tuple[ModelSpec, Path]:
    """The spec of a card and the file it came from.

    ``name_or_path`` is a path that ends in ``.toml``, or a name looked up in ``./models`` and then in the packaged copy.
    Raises CardError: no such card (with the nearest names), or the first things wrong in it (with the nearest known keys).
    """
    path = _find(name_or_path)
    spec = read_card(path)
    if not isinstance(spec.network, DescribedSpec):
        what = "package.module:function" if isinstance(spec.network, ModuleSpec) else "NETWORK.onnx"
        raise CardError(
            f"the card {path} has family {spec.network.family!r}: the network itself is in your own file or module",
            advice=f"give that file or module, and the card with --card: skdeploy export {what} --card {path}",
        )
    return spec, path


def load_interface_card(name_or_path: str) -> tuple[ModelSpec, Path]:
    """The card of an ONNX file or a module, of any family: what ``--card`` names. Raises CardError."""
    path = _find(name_or_path)
    return read_card(path), path


def read_card(path: Path) -> ModelSpec:
    """Validates one card file. Raises CardError."""
    content = read_toml(path, "card", CardError, ABOUT)
    try:
        spec = ModelSpec.model_validate(content)
    except ValidationError as error:
        raise CardError(
            f"the card {path} is not valid:\n" + "\n".join(_explain(error, content)),
            advice="every key is described in models/README.md",
        ) from error
    return spec


def list_cards() -> list[tuple[ModelSpec, Path]]:
    """All cards that a name would find, by name; those in ``./models`` hide packaged ones of the same name."""
    return [(read_card(path), path) for _, path in sorted(_known_cards().items())]


def _folders() -> Iterator[Path]:
    for folder in (Path("models"), packaged("models")):
        if folder.is_dir():
            yield folder


def _known_cards() -> dict[str, Path]:
    """Cards by name: the path below the folder without its ending, so ``timm/skresnet18`` is in ``timm``."""
    known: dict[str, Path] = {}
    for folder in _folders():
        known = {card.relative_to(folder).with_suffix("").as_posix(): card for card in folder.rglob("*.toml")} | known
    return known


def _find(name_or_path: str) -> Path:
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise CardError(
                f"no card at {path}", advice="give the path of a TOML file, or a name that `skdeploy models` lists"
            )
        return path
    known = _known_cards()
    if name_or_path in known:
        return known[name_or_path]
    nearest = difflib.get_close_matches(name_or_path.lower(), sorted(known), n=3, cutoff=0.4)
    guess = f"did you mean {' or '.join(nearest)}?" if nearest else "`skdeploy models` lists the names"
    raise CardError(f"no model named {name_or_path!r}", advice=guess)


def _explain(error: ValidationError, content: dict[str, Any]) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        where = shown_key(part for part in problem["loc"] if part != "[key]") or "card"
        if problem["type"] == "extra_forbidden":
            key = str(problem["loc"][-1])
            nearest = difflib.get_close_matches(key, _known_keys(problem["loc"][:-1], content), n=1, cutoff=0.5)
            yield f"  {where}: unknown key" + (f", did you mean {nearest[0]!r}?" if nearest else "")
        elif problem["type"] == "missing":
            yield f"  {where}: missing"
        elif problem["type"] == "no_family":
            yield f"  {where}.{problem['msg']}"
        elif problem["type"] == "family":
            yield f"  {where}.{problem['msg']} (given {problem['ctx']['family']!r})"
        else:
            given = problem["input"]
            shown = f" (given {shown_value(given)})" if isinstance(given, str | int | float | bool) else ""
            yield f"  {where}: {problem['msg'].removeprefix('Value error, ')}{shown}"


def _known_keys(location: tuple[int | str, ...], content: dict[str, Any]) -> list[str]:
    """The keys of the table at ``location``. An index into a list, or a key of a mapping, stays in the model it leads to."""
    model: type[BaseModel] | None = ModelSpec
    in_mapping = False
    for part in location:
        if isinstance(part, int) or in_mapping:
            in_mapping = False
            continue
        fields = {each.alias or name: each for name, each in model.model_fields.items()} if model else {}
        field = fields.get(part)
        if field is None:
            return []
        annotations = list(_flatten(field.annotation))
        in_mapping = any(getattr(annotation, "__origin__", None) is dict for annotation in annotations)
        model = next((a for a in annotations if isinstance(a, type) and issubclass(a, BaseModel)), None)
        if part == "network":
            model = SPECS[content["network"]["family"]]
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _flatten(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _flatten(argument)

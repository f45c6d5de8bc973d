"""A calibration as a file: ``calibration/<name>.toml`` says which images, how many, which method. No code runs from it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from skdeploy.core.architecture import Positive
from skdeploy.core.errors import CalibrationError, UsageError
from skdeploy.core.spec import CalibrationMethod, Frozen, InnerPath, ModelSpec
from skdeploy.core.toml_reasons import read_toml, shown_value
from skdeploy.images.dataset import Dataset, open_dataset
from skdeploy.quant.explain import explain
from skdeploy.quant.methods import Rounding
from skdeploy.quant.ranges import Digest, Percentile, check_percentile

KEYS: Final = "a recipe is a TOML file; every key is described in calibration/README.md"


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:  # groups a thousand deep; repeats beyond 2^32
        raise ValueError(f"{shown_value(pattern)} is not a regular expression: {error}") from error
    return pattern


class Recipe(Frozen):
    """A recipe, schema 1: data only. ``images`` is relative to the recipe's own folder. Every key: calibration/README.md."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    model: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_.-]*(/[a-z0-9][a-z0-9_.-]*)?$")]
    images: InnerPath
    split: Annotated[str, Field(min_length=1)]
    number: Positive
    seed: Annotated[int, Field(ge=0)] = 0
    method: Annotated[CalibrationMethod, Field(strict=False)]
    percentile: Percentile | None = None
    exclude: Annotated[
        tuple[Annotated[str, Field(min_length=1), AfterValidator(_compiles)], ...], Field(strict=False)
    ] = ()
    equalize: bool = True
    bias_correction: bool = True
    shift: bool = True
    exact_input: bool = True
    weight_scales: Literal["mse", "max"] = "mse"
    fallback: Literal["fp16", "fp32"] | None = None  # of an export: None is as its options say
    regroup: Positive | None = None
    weight_rounding: Rounding = "nearest"  # what recipes without it mean
    shift_padded: bool = False  # likewise
    float_skips: bool = False  # likewise
    images_sha256: Digest | None = None
    note: str = ""

    @model_validator(mode="after")
    def _percentile_if_used(self) -> Self:
        check_percentile(self.method, self.percentile)
        return self


def load_recipe(name_or_path: str) -> tuple[Recipe, Path]:
    """A recipe and the file it came from.

    ``name_or_path`` is a path that ends in ``.toml``, or a name looked up in ``./calibration`` and then in the packaged copy.
    Raises UsageError: no such recipe (with the nearest names), or the first things wrong in it.
    """
    path = _find(name_or_path)
    content = read_toml(path, "recipe", UsageError, KEYS)
    try:
        return Recipe.model_validate(content), path
    except ValidationError as error:
        raise UsageError(f"the recipe {path} is not valid:\n{explain(error, Recipe)}", advice=KEYS) from error


def open_images(recipe: Recipe, path: Path, spec: ModelSpec | None = None) -> Dataset:
    """All images that the recipe at ``path`` names, in their order; which ``number`` of them are used is up to its seed.

    Raises CalibrationError: not the images whose digest it gives, or fewer than it asks for. UsageError: no images there.
    """
    dataset = open_dataset(path.parent / recipe.images, spec=spec)
    if recipe.images_sha256 is not None and dataset.digest != recipe.images_sha256:
        raise CalibrationError(
            f"{path.parent / recipe.images} are not the images of the recipe {path}: their digest is "
            f"{dataset.digest}, in the recipe {recipe.images_sha256}",
            advice="get the images that it was written for, or change its images_sha256 to use these",
        )
    if len(dataset) < recipe.number:
        raise CalibrationError(
            f"the recipe {path} asks for {recipe.number} images, but {path.parent / recipe.images} has {len(dataset)}",
            advice="give more images, or a smaller number",
        )
    return dataset


def _folders() -> Iterator[Path]:
    from skdeploy.core.packaged import packaged

    yield Path("calibration")
    yield packaged("calibration")


def _find(name_or_path: str) -> Path:
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise UsageError(f"no recipe at {path}", advice="give the path of a TOML file, or a recipe's name")
        return path
    known: dict[str, Path] = {}
    for folder in _folders():
        known = {recipe.stem: recipe for recipe in sorted(folder.glob("*.toml"))} | known
    if name_or_path in known:
        return known[name_or_path]
    nearest = difflib.get_close_matches(name_or_path.lower(), sorted(known), n=3, cutoff=0.4)
    guess = (
        f"did you mean {' or '.join(nearest)}?" if nearest else f"known recipes: {', '.join(sorted(known)) or 'none'}"
    )
    raise UsageError(f"no recipe named {name_or_path!r} in ./calibration or in the package", advice=guess)

"""Options of an export that a recipe gives besides those of its calibration."""

from __future__ import annotations

from dataclasses import replace

from skdeploy.core.errors import UsageError
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions
from skdeploy.line.stations.regroup import RegroupOptions


def with_recipe(options: ExportOptions) -> ExportOptions:
    """The options with the fallback and the groups that the recipe of ``--calib`` names, if it is a recipe.

    Raises UsageError where the command line says otherwise.
    """
    asked = options.of_precision
    if not isinstance(asked, Int8Options) or asked.ranges is not None or not asked.calibration.from_recipe:
        return options
    from skdeploy.quant.recipe import load_recipe

    recipe, path = load_recipe(str(asked.calibration.images))
    if recipe.fallback is not None:
        if asked.fallback not in (Int8Options().fallback, recipe.fallback):
            raise UsageError(
                f"--int8-fallback {asked.fallback} and the recipe {path}, which says {recipe.fallback}, contradict each other",
                advice="leave --int8-fallback out, or change the recipe",
            )
        asked = asked.model_copy(update={"fallback": recipe.fallback})
        asked.check()
        options = replace(options, lowering={**options.lowering, options.precision: asked})
    if recipe.regroup is not None:
        given = options.rewrites.get("regroup")
        groups = given.regroup if isinstance(given, RegroupOptions) else None
        if groups not in (None, recipe.regroup):
            raise UsageError(
                f"--regroup {groups} and the recipe {path}, which says {recipe.regroup}, contradict each other",
                advice="leave --regroup out, or change the recipe",
            )
        options = replace(options, rewrites={**options.rewrites, "regroup": RegroupOptions(regroup=recipe.regroup)})
    return options

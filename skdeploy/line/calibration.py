"""Which images calibrate, and how: the options of ``calibrate`` and ``export --int8``, and the set that they choose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from skdeploy.core.errors import CalibrationError, UsageError
from skdeploy.core.options import Flag, StationOptions, flag_name, flags_of
from skdeploy.core.panel import Panel
from skdeploy.core.spec import CalibrationMethod, ModelSpec

if TYPE_CHECKING:
    from skdeploy.images.dataset import Dataset
    from skdeploy.quant.ranges import Algorithm

DEFAULT_NUMBER: Final = 512
DEFAULT_BATCH: Final = 8
DEFAULT_PERCENTILE: Final = 99.99


class CalibrationOptions(StationOptions):
    """Which images calibrate, and how. None means the default, or what the recipe says where ``images`` is one.

    ``images``: a folder, .npz, .npy, .txt list, or a recipe (.toml). ``number`` at most are used, chosen by ``seed``; ``batch``
    are fed at a time. ``allow_random``: without images, noise. The switches turn off what makes the result more accurate.
    """

    panel = Panel.CALIBRATION
    images: Annotated[
        Path | None,
        Flag(
            "Calibration images or samples: a folder, an .npz or .npy, a .txt list, or a recipe (.toml).", ("--calib",)
        ),
    ] = None
    method: Annotated[
        CalibrationMethod | None,
        Flag(
            "Method that chooses a tensor's range; auto takes the best on inputs held back.  [default: auto]",
            ("--calib-method",),
        ),
    ] = None
    percentile: Annotated[
        float | None,
        Flag("Percentile for --calib-method percentile.  [default: 99.99]", ("--calib-percentile",)),
    ] = None
    number: Annotated[
        int | None,
        Flag("Use at most this many images or samples, balanced over classes.  [default: 512]", ("--calib-num",)),
    ] = None
    batch: Annotated[int, Flag("Images or samples per run; does not change the result.", ("--calib-batch",))] = (
        DEFAULT_BATCH
    )
    seed: Annotated[
        int | None,
        Flag(
            "Seed for choosing images or samples when there are more than --calib-num.  [default: 0]", ("--calib-seed",)
        ),
    ] = None
    allow_random: Annotated[
        bool,
        Flag("Calibrate on noise, to measure speed only. The bundle is marked.", ("--allow-random-calib",)),
    ] = False
    equalize: Annotated[
        bool | None,
        Flag("Scale channels to equal ranges before calibration.  [default: equalize]", ("--equalize/--no-equalize",)),
    ] = None
    bias_correction: Annotated[
        bool | None,
        Flag(
            "Correct biases for the mean error of rounded weights.  [default: bias-correction]",
            ("--bias-correction/--no-bias-correction",),
        ),
    ] = None
    shift: Annotated[
        bool | None,
        Flag(
            "Use all 256 levels for tensors with no or small negative values.  [default: shift]",
            ("--shift/--no-shift",),
        ),
    ] = None
    shift_padded: Annotated[
        bool | None,
        Flag(
            "Shift what padded convolutions read too, with a Pad before them where a slice or select makes it."
            "  [default: shift-padded]",
            ("--shift-padded/--no-shift-padded",),
        ),
    ] = None
    exact_input: Annotated[
        bool | None,
        Flag(
            "Choose the input's scale so that 8-bit pixels are exact.  [default: exact-input]",
            ("--exact-input/--no-exact-input",),
        ),
    ] = None
    float_skips: Annotated[
        bool | None,
        Flag(
            "Keep skips in floating point that go into a last layer which makes a map.  [default: float-skips]",
            ("--float-skips/--no-float-skips",),
        ),
    ] = None
    weight_scales: Annotated[
        Literal["mse", "max"] | None,
        Flag("Weight scale per channel: least squared error, or the largest weight.  [default: mse]"),
    ] = None
    weight_rounding: Annotated[
        Literal["gptq", "nearest"] | None,
        Flag("Rounding of weights: each makes up for errors of others, or to nearest.  [default: gptq]"),
    ] = None

    @property
    def from_recipe(self) -> bool:
        return self.images is not None and self.images.suffix == ".toml"

    @property
    def given(self) -> tuple[str, ...]:
        """The given flags that a recipe sets too."""
        own = ("images", "batch", "allow_random")
        names = [(name, flag_name(name, flag).partition("/")[0]) for name, _, _, flag in flags_of(type(self))]
        return tuple(flag for name, flag in names if name not in own and getattr(self, name) is not None)

    def require_images(self) -> None:
        """Raises UsageError where there is nothing to calibrate on."""
        if self.images is None and not self.allow_random:
            raise UsageError(
                "INT8 needs images or samples to calibrate on",
                advice="give --calib with a folder, .npz or .txt, or --ranges with the file of an earlier "
                "calibration; use --allow-random-calib only where accuracy does not matter",
            )

    def check(self) -> None:
        """Raises UsageError for what cannot be, contradicts itself, or is not there."""
        from skdeploy.images.dataset import require_there

        if self.images is not None and self.allow_random:
            raise UsageError("--calib and --allow-random-calib cannot be used together", advice="give one of them")
        if self.from_recipe and self.given:
            raise UsageError(
                f"{', '.join(self.given)} and the recipe {self.images} set the same values",
                advice="change the recipe, or give the images themselves with --calib",
            )
        for name, value in (("--calib-num", self.number), ("--calib-batch", self.batch)):
            if value is not None and value < 1:
                raise UsageError(f"{name} {value}: must be at least 1")
        if self.seed is not None and self.seed < 0:
            raise UsageError(f"--calib-seed {self.seed}: must be at least 0")
        if self.percentile is not None:
            if self.method is not CalibrationMethod.PERCENTILE:
                raise UsageError("--calib-percentile requires --calib-method percentile", advice="add it")
            if not 0 < self.percentile <= 100:
                raise UsageError(
                    f"--calib-percentile {self.percentile:g}: must be above 0 and at most 100, such as 99.99"
                )
        if self.images is not None and not self.from_recipe:  # a recipe may be one that comes with skdeploy
            require_there(self.images)


@dataclass(frozen=True)
class CalibrationSet:
    """The images that calibrate, how many were asked for, and the algorithm."""

    dataset: Dataset
    asked: int
    algorithm: Algorithm
    exclude: tuple[str, ...] = ()


def calibration_images(options: CalibrationOptions, spec: ModelSpec) -> Dataset:
    """All images that ``options`` names, of which calibration chooses. Raises UsageError where there are none."""
    from skdeploy.images.dataset import open_dataset
    from skdeploy.quant.recipe import load_recipe, open_images

    assert options.images is not None
    if options.from_recipe:
        return open_images(*load_recipe(str(options.images)), spec)
    return open_dataset(options.images, spec=spec)


def calibration_set(options: CalibrationOptions, spec: ModelSpec) -> CalibrationSet:
    """Opens the images that ``options`` names, or the recipe; nothing is decoded yet.

    Raises UsageError: no images there. CalibrationError: a recipe of another model, or whose images are others.
    """
    from skdeploy.images.dataset import open_dataset
    from skdeploy.images.selection import random_images, select
    from skdeploy.quant.ranges import ALGORITHM_VERSION, Algorithm
    from skdeploy.quant.recipe import load_recipe, open_images

    if options.from_recipe:
        recipe, path = load_recipe(str(options.images))
        if recipe.model != spec.name:
            raise CalibrationError(
                f"the recipe {path} is for {recipe.model}, but this is {spec.name}",
                advice="give the images themselves with --calib, or write a recipe for this network",
            )
        dataset = open_images(recipe, path, spec)
        algorithm = Algorithm(
            method=recipe.method,
            percentile=recipe.percentile,
            equalize=recipe.equalize,
            bias_correction=recipe.bias_correction,
            shift=recipe.shift,
            shift_padded=recipe.shift and recipe.shift_padded,
            exact_input=recipe.exact_input,
            float_skips=recipe.float_skips,
            weight_scales=recipe.weight_scales,
            weight_rounding=recipe.weight_rounding,
            version=ALGORITHM_VERSION,
        )
        return CalibrationSet(
            select(_counted(dataset, spec), recipe.number, recipe.seed), recipe.number, algorithm, recipe.exclude
        )
    number, seed = options.number or DEFAULT_NUMBER, options.seed or 0
    method = options.method or CalibrationMethod.AUTO
    uses_percentile = method is CalibrationMethod.PERCENTILE
    algorithm = Algorithm(
        method=method,
        percentile=(options.percentile or DEFAULT_PERCENTILE) if uses_percentile else None,
        equalize=options.equalize is not False,
        bias_correction=options.bias_correction is not False,
        shift=options.shift is not False,
        shift_padded=options.shift is not False and options.shift_padded is not False,
        exact_input=options.exact_input is not False and spec.takes_images,
        float_skips=options.float_skips is not False,
        weight_scales=options.weight_scales or "mse",
        weight_rounding=options.weight_rounding or "gptq",
        version=ALGORITHM_VERSION,
    )
    if options.images is None:
        return CalibrationSet(random_images(spec, number, seed), number, algorithm)
    return CalibrationSet(
        select(_counted(open_dataset(options.images, spec=spec), spec), number, seed), number, algorithm
    )


def _counted(dataset: Dataset, spec: ModelSpec) -> Dataset:
    """With the labels as the network counts them where that can be told: calibration needs none, they balance the choice."""
    from skdeploy.images.labels import as_the_network_counts

    try:
        return as_the_network_counts(dataset, spec)
    except UsageError:
        return dataset

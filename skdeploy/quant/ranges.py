"""The ranges of a network's tensors as a file to review: ``skdeploy calibrate`` writes it, ``export --int8`` reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, ValidationError, model_validator

from skdeploy.bundle.artifact import tool_versions
from skdeploy.core.errors import CalibrationError
from skdeploy.core.files import digest_json, read_file, write_text
from skdeploy.core.interface import ArrayInput, DynamicSize
from skdeploy.core.spec import CalibrationMethod, Frozen, InputSpec, ModelSpec, Preprocess
from skdeploy.core.version import __version__
from skdeploy.quant.explain import explain
from skdeploy.quant.methods import Choice, Rounding

if TYPE_CHECKING:
    import onnx_ir as ir

ALGORITHM_VERSION: Final = 10  # grows whenever the same choices would give other numbers
INT8_MAX: Final = 127
TOOLS: Final = ("numpy", "onnx-ir", "onnxruntime", "onnxruntime-gpu")  # what the numbers in the file come from

# FP32's largest finite number, rounded up so that its own nine digits pass; and the smallest threshold whose scale is a normal
# FP32 number: GPUs flush smaller ones to zero, and a scale of zero divides by zero.
LARGEST: Final = 3.4028235e38
SMALLEST_THRESHOLD: Final = 127 * 2.0**-126

ONE_ENTRY_A_LINE: Final = ("tensors", "channel_maxima", "channel_means", "channel_reach", "audit", "rounding")
CALIBRATE: Final = "calibrate again: skdeploy calibrate"
MAX_BYTES: Final = 1 << 30  # SKNet-50's have a few megabytes


def _nine_digits(value: float) -> float:
    """Nine significant digits tell any two float32 apart (1 + ceil(24 log10 2) = 9); and a zero has no sign here."""
    return float(f"{value:.9g}") + 0.0


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}") + 0.0


def _gives_a_scale(threshold: float) -> float:
    if threshold < SMALLEST_THRESHOLD:
        raise ValueError(f"must be positive, and at least {SMALLEST_THRESHOLD:.3g} for a scale that FP32 holds")
    return threshold


def _plain_json(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    dumps(value, allow_nan=False)  # raises ValueError
    return value


Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Percentile = Annotated[float, Field(gt=0, le=100)]
Magnitude = Annotated[float, Field(allow_inf_nan=False, ge=-LARGEST, le=LARGEST)]
Bound = Annotated[Magnitude, AfterValidator(_nine_digits)]
Threshold = Annotated[Magnitude, AfterValidator(_nine_digits), AfterValidator(_gives_a_scale)]
Channels = Annotated[tuple[Annotated[Magnitude, AfterValidator(_six_digits)], ...], Field(min_length=1)]
Maxima = Annotated[tuple[Annotated[Magnitude, Field(ge=0), AfterValidator(_six_digits)], ...], Field(min_length=1)]


class TensorRange(Frozen):
    """A tensor's values over all images, and the magnitude that becomes 127, in the tensor's unit.

    ``shifted_threshold``, of a tensor with no or small negative values, is the magnitude that becomes the last of 255 steps,
    where it is shifted to use all of INT8 (``passes/shift.py``); the first of them reaches ``minimum``, if that is below zero.
    """

    minimum: Bound
    maximum: Bound
    threshold: Threshold
    shifted_threshold: Threshold | None = None

    @property
    def scale(self) -> float:
        """The step of the INT8 numbers: symmetric, so threshold / 127."""
        return self.threshold / INT8_MAX

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self


class CalibrationData(Frozen):
    """The images: ``sha256`` is ``Dataset.digest`` of those used; ``random`` says that they are noise, not images."""

    name: str
    sha256: Digest
    images: Annotated[int, Field(ge=1)]
    random: bool = False


class Algorithm(Frozen):
    """All that turns images into ranges. ``version`` grows whenever the same choices would give other numbers.

    ``equalize``: ``passes/equalize.py``; ``shift``, ``shift_padded``: ``passes/shift.py``; ``exact_input``:
    ``passes/exact_input.py``; ``bias_correction`` and ``weight_scales``: ``quant/weights.py``; ``weight_rounding``:
    ``quant/gptq.py``; ``float_skips``: ``ir/placement.py``.
    """

    method: CalibrationMethod
    percentile: Percentile | None = None
    equalize: bool = True
    bias_correction: bool = True
    shift: bool = True
    exact_input: bool = True
    weight_scales: Literal["mse", "max"] = "mse"
    # left out where it is what files without it mean, so that their digests hold
    weight_rounding: Annotated[Rounding, Field(exclude_if=lambda rounding: rounding == "nearest")] = "nearest"
    shift_padded: Annotated[bool, Field(exclude_if=lambda padded: not padded)] = False
    float_skips: Annotated[bool, Field(exclude_if=lambda skips: not skips)] = False
    version: Annotated[int, Field(ge=1)]

    @property
    def digest(self) -> str:
        """SHA-256 of the choices: equal digests, equal ranges of equal weights and images."""
        return digest_json(self.model_dump(mode="json"))

    @model_validator(mode="after")
    def _percentile_if_used(self) -> Self:
        check_percentile(self.method, self.percentile)
        return self


class Taken(Frozen):
    """The inputs of a network as its card has them: preprocessing and image, or other inputs."""

    preprocess: Preprocess | None = None
    input: InputSpec | None = None
    inputs: tuple[ArrayInput, ...] = ()
    sizes: dict[str, DynamicSize] = Field(default={})

    @classmethod
    def of(cls, spec: ModelSpec) -> Self:
        return cls(preprocess=spec.image_preprocess, input=spec.image, inputs=spec.inputs, sizes=spec.sizes)


class Ranges(Frozen):
    """A ranges file, schema 1.

    ``channel_maxima`` are the largest magnitudes of a tensor's channels, (C,), for equalization; all else belongs to the graph
    once equalized. ``channel_reach`` is the same of those tensors beside that bound equalization. ``channel_means`` are means
    over images and space, (C,), for bias correction. ``choice`` says what the method ``auto`` chose, and why. ``rounding`` has,
    for each layer, how its integers differ from those of rounding to nearest (``rounding.py``): not at all, where ``choice``
    says that GPTQ was worse.
    """

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    skdeploy: str
    tools: dict[str, str]
    model: str
    model_sha256: Digest
    # of images these two, of other inputs those
    preprocess: Annotated[Preprocess | None, Field(exclude_if=lambda given: given is None)] = None
    input: Annotated[InputSpec | None, Field(exclude_if=lambda given: given is None)] = None
    inputs: Annotated[tuple[ArrayInput, ...], Field(strict=False, exclude_if=lambda inputs: not inputs)] = ()
    sizes: Annotated[dict[str, DynamicSize], Field(exclude_if=lambda sizes: not sizes)] = Field(default={})
    preprocess_sha256: Digest
    data: CalibrationData
    algorithm: Algorithm
    algorithm_sha256: Digest
    tensors: Annotated[dict[str, TensorRange], Field(min_length=1)]
    channel_maxima: dict[str, Maxima] = Field(default={})
    channel_means: dict[str, Channels] = Field(default={})
    channel_reach: dict[str, Maxima] = Field(default={}, exclude_if=lambda reach: not reach)
    choice: Annotated[Choice | None, Field(exclude_if=lambda choice: choice is None)] = None
    audit: Annotated[dict[str, JsonValue], AfterValidator(_plain_json)] = Field(default={})
    rounding: Annotated[dict[str, str], Field(exclude_if=lambda rounding: not rounding)] = Field(default={})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.algorithm_sha256 != self.algorithm.digest:
            raise ValueError("algorithm_sha256 is not the digest of algorithm: the file was edited by hand")
        if (self.input is None) == (not self.inputs) or (self.input is None) != (self.preprocess is None):
            raise ValueError("preprocess and input, or inputs: one of the two belongs in a ranges file")
        if self.preprocess_sha256 != _form_digest(self):
            raise ValueError("preprocess_sha256 is not the digest of preprocess and input: the file was edited by hand")
        if self.algorithm.bias_correction and not self.channel_means:
            raise ValueError("algorithm.bias_correction is on, but there are no channel_means to correct with")
        if self.algorithm.equalize and not self.channel_maxima:
            raise ValueError("algorithm.equalize is on, but there are no channel_maxima to equalize by")
        if (self.algorithm.method is CalibrationMethod.AUTO) != (self.choice is not None):
            raise ValueError("algorithm.method auto and its choice belong together, and one of them is missing")
        if self.rounding and self.algorithm.weight_rounding == "nearest":
            raise ValueError("rounding is there, but algorithm.weight_rounding is nearest")
        if self.algorithm.shift_padded and not self.algorithm.shift:
            raise ValueError("algorithm.shift_padded is on, but algorithm.shift is off")
        return self

    @classmethod
    def of(
        cls,
        model: ir.Model,
        spec: ModelSpec,
        data: CalibrationData,
        algorithm: Algorithm,
        tensors: Mapping[str, tuple[float, float, float, float | None]],
        channel_maxima: Mapping[str, Iterable[float]] | None = None,
        channel_means: Mapping[str, Iterable[float]] | None = None,
        audit: Mapping[str, JsonValue] | None = None,
        channel_reach: Mapping[str, Iterable[float]] | None = None,
    ) -> Ranges:
        """The ranges of the FP32 graph's tensors from (minimum, maximum, threshold, shifted) of each, in the graph's order.

        Names are those of ``identity.range_names``.

        Raises CalibrationError: a tensor that the graph does not have, NaN, infinity, or a threshold that is not positive.
        """
        from skdeploy.quant.identity import graph_identity, range_names

        order = {name: position for position, name in enumerate(range_names(model).values())}
        channels = {
            "channel_maxima": channel_maxima or {},
            "channel_means": channel_means or {},
            "channel_reach": channel_reach or {},
        }
        strange = [
            name for name in (*tensors, *(key for part in channels.values() for key in part)) if name not in order
        ]
        if strange:
            raise CalibrationError(f"there is a range for {strange[0]!r}, which is not a tensor of {spec.name}'s graph")
        content = {
            "schema": 1,
            "skdeploy": __version__,
            "tools": tool_versions(TOOLS),
            "model": spec.name,
            "model_sha256": graph_identity(model),
            "preprocess": spec.image_preprocess,
            "input": spec.image,
            "inputs": spec.inputs,
            "sizes": spec.sizes,
            "preprocess_sha256": _form_digest(Taken.of(spec)),
            "data": data,
            "algorithm": algorithm,
            "algorithm_sha256": algorithm.digest,
            "tensors": {name: _range(tensors[name]) for name in sorted(tensors, key=order.__getitem__)},
            **{
                field: {name: tuple(map(float, values[name])) for name in sorted(values, key=order.__getitem__)}
                for field, values in channels.items()
            },
            "audit": dict(audit or {}),
        }
        return _validated(cls, content)

    def with_tensors(self, tensors: Mapping[str, tuple[float, float, float, float | None]]) -> Ranges:
        """The same with other ranges of all its tensors. Raises CalibrationError as ``of`` does."""
        assert tensors.keys() == self.tensors.keys()
        return _validated(Ranges, {**dict(self), "schema": 1, "tensors": {n: _range(tensors[n]) for n in self.tensors}})

    def finished(self, algorithm: Algorithm, choice: Choice | None, rounding: Mapping[str, str]) -> Ranges:
        """The same as the result of the whole algorithm."""
        whole = {"algorithm": algorithm, "algorithm_sha256": algorithm.digest, "choice": choice, "rounding": rounding}
        return _validated(Ranges, {**dict(self), "schema": 1, **whole})

    @property
    def scales(self) -> dict[str, float]:
        """Each tensor's INT8 step, in the file's order."""
        return {name: tensor.scale for name, tensor in self.tensors.items()}

    def text(self) -> str:
        """JSON with a tensor a line, so that a diff shows the tensors that changed; equal ranges give equal bytes."""
        parts = []
        for key, value in self.model_dump(mode="json", by_alias=True).items():
            if key in ONE_ENTRY_A_LINE and value:
                rows = ",\n".join(f"    {_json(name)}: {_json(entry)}" for name, entry in value.items())
                parts.append(f"  {_json(key)}: {{\n{rows}\n  }}")
            else:
                parts.append(f"  {_json(key)}: {_json(value)}")
        return "{\n" + ",\n".join(parts) + "\n}\n"

    def write(self, path: Path) -> None:
        """Replaces ``path``, whole or not at all. Raises IntegrityError for a full disk, UsageError for a bad place."""
        write_text(path, self.text())

    def check_belongs(self, model: ir.Model, spec: ModelSpec, wanted: Iterable[str] = ()) -> None:
        """Raises CalibrationError unless these are ranges of this FP32 graph, its preprocessing and all ``wanted`` tensors."""
        from skdeploy.quant.identity import graph_identity

        identity = graph_identity(model)
        if identity != self.model_sha256:
            raise CalibrationError(
                f"the ranges belong to other weights: calibrated on {self.model} {self.model_sha256}, but the "
                f"graph of {spec.name} is {identity}",
                advice=CALIBRATE,
            )
        digest = _form_digest(Taken.of(spec))
        if digest != self.preprocess_sha256:
            there, here = _form(self), _form(Taken.of(spec))
            differing = [
                f"  {key}: calibrated with {there.get(key, 'the default')}, now {here.get(key, 'the default')}"
                for key in {**there, **here}
                if there.get(key) != here.get(key)
            ]
            raise CalibrationError(
                "the ranges belong to another preprocessing or image size: calibrated with "
                f"{self.preprocess_sha256}, now {digest}\n" + "\n".join(differing),
                advice=f"use the values that it was calibrated with, or {CALIBRATE}",
            )
        self.check_covers(wanted)

    def check_covers(self, wanted: Iterable[str]) -> None:
        """Raises CalibrationError unless all ``wanted`` tensors have ranges."""
        absent = [name for name in wanted if name not in self.tensors]
        if absent:
            others = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise CalibrationError(
                f"the ranges have no entry for the tensor {absent[0]!r}{others}: they were calibrated for "
                "other modules",
                advice=f"{CALIBRATE}, with the same modules and options as the export",
            )


def _validated(cls: type[Ranges], content: Mapping[str, object]) -> Ranges:
    try:
        return cls.model_validate({key: value for key, value in content.items() if key != "schema_version"})
    except ValidationError as error:
        raise CalibrationError(
            f"calibration of {content['model']} gave invalid ranges:\n{explain(error, cls)}",
            advice="check the images: `skdeploy calibrate` prints its audit of them",
        ) from error


def load_ranges(path: Path) -> Ranges:
    """Reads a ranges file. Raises CalibrationError: absent, truncated, of another schema, or naming the fields that are bad."""
    try:
        content = read_file(path, MAX_BYTES)
    except OSError as error:
        raise CalibrationError(f"cannot read the ranges {path}: {error.strerror}", advice=CALIBRATE) from error
    try:
        return Ranges.model_validate_json(content)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            if problem["loc"] == ("schema",) and problem["type"] == "literal_error":
                raise CalibrationError(
                    f"the ranges {path} have schema {problem['input']!r}, but this skdeploy {__version__} "
                    "reads schema 1",
                    advice="use the skdeploy that wrote them, or " + CALIBRATE,
                ) from error
        raise CalibrationError(
            f"the ranges {path} are not valid:\n{explain(error, Ranges)}", advice=CALIBRATE
        ) from error


def check_percentile(method: CalibrationMethod, percentile: float | None) -> None:
    """Raises ValueError unless a percentile is given exactly where the method uses one."""
    if (method is CalibrationMethod.PERCENTILE) != (percentile is not None):
        raise ValueError(f"method {method} {'takes no' if percentile is not None else 'needs a'} percentile")


def _range(measured: tuple[float, float, float, float | None]) -> dict[str, float | None]:
    minimum, maximum, threshold, shifted = measured
    return {
        "minimum": float(minimum),
        "maximum": float(maximum),
        "threshold": float(threshold),
        "shifted_threshold": None if shifted is None else float(shifted),
    }


def _form(taken: Taken | Ranges) -> dict[str, JsonValue]:
    """Return the inputs by their names in a card: preprocessing and image size, or other inputs."""
    tables = {"preprocess": taken.preprocess, "input": taken.input}
    form: dict[str, JsonValue] = {
        f"{table}.{key}": value
        for table, content in tables.items()
        if content is not None
        for key, value in content.model_dump(mode="json").items()
    }
    form |= {f"inputs.{each.name}": str(each) for each in taken.inputs}
    return form | {f"sizes.{name}.usual": size.usual for name, size in taken.sizes.items()}


def _form_digest(taken: Taken | Ranges) -> str:
    return digest_json(_form(taken))


def _json(value: JsonValue) -> str:
    return dumps(value, ensure_ascii=False, allow_nan=False)

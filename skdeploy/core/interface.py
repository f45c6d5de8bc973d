"""Inputs of networks that do not take images: ``[[inputs]]`` and ``[sizes]`` of a card."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from skdeploy.core.architecture import Frozen, Positive

Axis = Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]
Dtype = Literal["float32", "int64", "int32", "uint8", "bool"]
MAX_RANK = 7  # of one sample: TensorRT's tensors have 8 dimensions with the batch


class ArrayInput(Frozen):
    """One input that is not an image; ``shape`` is that of one sample, where a name is a dimension under ``[sizes]``.

    ``channels_last``: files hold the first dimension of ``shape`` last, as hyperspectral planes (H, W, C) do.
    """

    name: Annotated[str, Field(min_length=1, max_length=255)]
    dtype: Dtype = "float32"
    shape: Annotated[tuple[Positive | Axis, ...], Field(strict=False, max_length=MAX_RANK)]
    channels_last: Annotated[bool, Field(exclude_if=lambda last: not last)] = False

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


class DynamicSize(Frozen):
    """A dimension that is free. ``usual`` is that of samples, examples and the engine's best shape.

    A sample that is larger is cut to it around its centre. Each size must be a multiple of ``multiple``; an engine takes
    ``min`` to ``max``, by default from half to twice the usual.
    """

    usual: Positive
    multiple: Positive = 1
    min: Positive | None = None
    max: Positive | None = None

    @property
    def smallest(self) -> int:
        half = -(-self.usual // 2)
        return self.min or -(-half // self.multiple) * self.multiple

    @property
    def largest(self) -> int:
        return self.max or 2 * self.usual

    @model_validator(mode="after")
    def _ordered(self) -> DynamicSize:
        for key in ("usual", "min", "max"):
            size = getattr(self, key)
            if size is not None and size % self.multiple:
                raise ValueError(f"{key} {size} is not a multiple of {self.multiple}")
        if not self.smallest <= self.usual <= self.largest:
            raise ValueError(f"min {self.smallest}, usual {self.usual} and max {self.largest} must rise")
        return self

"""The inputs of an ONNX file made elsewhere: one image, or anything else under its own names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from onnx import ModelProto, TensorProto, ValueInfoProto

from skdeploy.core.errors import CardError, UsageError
from skdeploy.core.interface import MAX_RANK, ArrayInput
from skdeploy.core.spec import ModelSpec

DTYPES: Final[Mapping[int, str]] = {
    TensorProto.FLOAT: "float32",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.UINT8: "uint8",
    TensorProto.BOOL: "bool",
}
BATCH: Final = "batch"
GREY_OR_RGB: Final = (1, 3)


class _Input(NamedTuple):
    value: ValueInfoProto
    dims: list[int | str]  # a name, or "?", where a dimension is free

    def __str__(self) -> str:
        return f"{_type_name(self.value)}{self.dims}"


def take_inputs(proto: ModelProto, path: Path, card: ModelSpec | None) -> bool:
    """Leave the inputs that somebody feeds, give their free dimensions names, and say whether they are one image.

    Without a card, one float32 input (N, 1 or 3, H, W) is an image. Dimensions get the names and the fixed sizes of a card.
    Raises UsageError for types and ranks that skdeploy does not take, CardError for a card of other inputs.
    """
    graph = proto.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [_Input(value, _dims(value)) for value in graph.input if value.name not in constants]
    if not inputs:
        raise UsageError(f"{path} has no input", advice="export it again, with its input as a graph input")
    for each in inputs:
        if 0 in each.dims:
            raise UsageError(
                f"{path}: the input {each.value.name} is {each}: a dimension of 0 holds nothing",
                advice="export it with its real sizes, or with a name for a free one",
            )
    is_image = _is_image(inputs) if card is None else card.takes_images
    if is_image:
        _check_image(inputs, path)
    else:
        _check_arrays(inputs, path, card)
    proto.ir_version = max(proto.ir_version, 4)  # version 3 wants all constants among the inputs
    kept = [each.value for each in inputs]
    del graph.input[:]
    graph.input.extend(kept)
    return is_image


def _is_image(inputs: list[_Input]) -> bool:
    value, dims = inputs[0]
    floats = value.type.tensor_type.elem_type == TensorProto.FLOAT
    return len(inputs) == 1 and floats and len(dims) == 4 and dims[1] in GREY_OR_RGB


def _check_image(inputs: list[_Input], path: Path) -> None:
    if len(inputs) != 1:
        raise UsageError(
            f"{path} has the inputs {', '.join(each.value.name for each in inputs)}, but the card describes one image",
            advice="describe them with [[inputs]] in place of [input] and [preprocess]",
        )
    (image,) = inputs
    shown = f"{path}: the input {image.value.name} is {image}"
    if len(image.dims) != 4:
        raise UsageError(
            f"{shown}, of rank {len(image.dims)}, but the card describes an image, (N, C, H, W)",
            advice="describe it with [[inputs]] in place of [input] and [preprocess]",
        )
    if image.value.type.tensor_type.elem_type != TensorProto.FLOAT or not isinstance(image.dims[1], int):
        raise UsageError(
            f"{shown}, but float32 (N, C, H, W) is needed", advice="export it with float32 images and fixed channels"
        )
    for axis, name in ((0, BATCH), (2, "height"), (3, "width")):
        if not isinstance(image.dims[axis], int):
            image.value.type.tensor_type.shape.dim[axis].dim_param = name


def _check_arrays(inputs: list[_Input], path: Path, card: ModelSpec | None) -> None:
    for each in inputs:
        shown = f"{path}: the input {each.value.name} is {each}"
        if each.value.type.tensor_type.elem_type not in DTYPES:
            raise UsageError(
                f"{shown}, but {', '.join(DTYPES.values())} are taken", advice="export it with one of these"
            )
        if not 1 <= len(each.dims) <= MAX_RANK + 1:
            raise UsageError(
                f"{shown}, of rank {len(each.dims)}; skdeploy takes 1 to {MAX_RANK + 1} dimensions, the batch first",
                advice="export it with a batch as the first dimension of each input",
            )
    said = {} if card is None else _said_by(card, inputs, path)
    for each in inputs:
        wanted = said.get(each.value.name, ())
        for axis, size in enumerate(each.dims):
            dim = each.value.type.tensor_type.shape.dim[axis]
            if axis == 0:
                if not isinstance(size, int):
                    dim.dim_param = BATCH
            elif wanted:
                asked = wanted[axis - 1]
                if isinstance(asked, int):
                    dim.dim_value = asked
                elif not isinstance(size, int):
                    dim.dim_param = asked
            elif not isinstance(size, int):
                dim.dim_param = _axis_name(each.value.name, axis, size)


def _said_by(card: ModelSpec, inputs: list[_Input], path: Path) -> Mapping[str, tuple[int | str, ...]]:
    """The shapes that a card gives, by input, once they agree with the file's."""
    by_name = {each.name: each for each in card.inputs}
    wrong = []
    if by_name.keys() != {each.value.name for each in inputs}:
        found = ", ".join(each.value.name for each in inputs)
        wrong.append(f"  inputs: the card says {', '.join(by_name)}, the network has {found}")
    for each in inputs:
        asked = by_name.get(each.value.name)
        if asked is not None and not _agrees(asked, each):
            wrong.append(f"  inputs.{asked.name}: the card says {asked}, the network has {each} with the batch")
    if wrong:
        raise CardError(
            f"the card {card.name} does not fit {path}:\n" + "\n".join(wrong),
            advice="correct the card, or give the network it was written for",
        )
    return {name: each.shape for name, each in by_name.items()}


def _agrees(asked: ArrayInput, found: _Input) -> bool:
    dtype = DTYPES[found.value.type.tensor_type.elem_type]
    if asked.dtype != dtype or len(asked.shape) + 1 != len(found.dims):
        return False
    return all(
        not isinstance(size, int) or said == size for said, size in zip(asked.shape, found.dims[1:], strict=True)
    )


def _axis_name(name: str, axis: int, given: int | str) -> str:
    """A free dimension's own name, where it has one that a card may have, else one made of the input's."""
    words = str(given)
    if re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,63}", words) and words != BATCH:
        return words
    return re.sub(r"\W", "_", f"{name}_{axis}", flags=re.ASCII)


def _dims(value: ValueInfoProto) -> list[int | str]:
    shape = value.type.tensor_type.shape
    return [  # Paddle's and TensorFlow's exporters write -1 for a free one
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param or "?" for dim in shape.dim
    ]


def _type_name(value: ValueInfoProto) -> str:
    return TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()

"""Answers of a server about itself and its models, as checked objects: another program may answer, or one that is broken."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from typing import Annotated, Any, Final, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skdeploy.core.errors import IntegrityError, first_problem
from skdeploy.core.spec import TensorSpec

ADVICE: Final = "look into the server's log, and at what is between it and here"
LABEL: Final = re.compile(rb"[^:]*:(\d{1,9})(?::(.*))?", re.DOTALL)  # value:number:label


class Answer(BaseModel):
    """Fields that are not named here are of other versions of the server. gRPC sends numbers of 64 bits as text."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class About(Answer):
    """The server."""

    name: str = "triton"
    version: str = ""
    extensions: tuple[str, ...]


class Entry(Answer):
    """A model of its repository. ``state`` and ``reason`` are there once it has tried to load it."""

    name: str
    state: str = ""
    reason: str = ""


class Index(Answer):
    """All models."""

    models: tuple[Entry, ...] = ()


class Loaded(Answer):
    """A model that is ready: its versions."""

    versions: tuple[Annotated[str, Field(pattern=r"^[0-9]{1,18}$")], ...] = Field(min_length=1)


class ServedTensor(Answer):
    """An input or output; ``dims`` without the batch, -1 for a free size."""

    name: str
    data_type: str
    dims: tuple[Annotated[int, Field(ge=-1, lt=2**63)], ...] = ()


class Parameter(Answer):
    """A text that `skdeploy triton` has put there."""

    string_value: str = ""


class ServedConfig(Answer):
    """A model's config.pbtxt."""

    backend: str = ""
    platform: str = ""
    max_batch_size: int = Field(default=0, ge=0, lt=2**31)
    input: tuple[ServedTensor, ...] = ()
    output: tuple[ServedTensor, ...] = ()
    parameters: dict[str, Parameter] = {}


Kind = TypeVar("Kind", bound=Answer)


def read_answer(kind: type[Kind], content: Any, place: str) -> Kind:
    """The answer of the server at ``place``. Raises IntegrityError for one that Triton does not give."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise IntegrityError(
            f"{place} gives an answer that is not of a Triton server: {first_problem(error, 'the answer')}",
            advice=ADVICE,
        ) from error


def check_output(found: Any, spec: TensorSpec, rows: int, place: str, classes: int = 0) -> None:
    """Raises IntegrityError unless this is an output of ``rows`` rows, or as many lists of ``classes`` texts."""
    wanted = (
        "object" if classes else "float32" if spec.dtype == "bfloat16" else spec.dtype
    )  # as tritonclient gives BF16
    sizes = [size for size in spec.shape[1:] if isinstance(size, int)]
    whole = len(sizes) == len(spec.shape) - 1 and not classes
    fits = isinstance(found, np.ndarray) and found.dtype == np.dtype(wanted) and found.shape[:1] == (rows,)
    if not fits or (whole and found.size != rows * prod(sizes)):
        said = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else "nothing"
        raise IntegrityError(f"{place} answers {rows} rows with {said}, but {spec} is asked for", advice=ADVICE)


def read_labels(rows: Sequence[Any], place: str) -> dict[int, str | None]:
    """Labels by class number, from the classification extension's texts; None for a class without. Raises IntegrityError."""
    labels: dict[int, str | None] = {}
    for row in rows:
        parts = LABEL.fullmatch(row) if isinstance(row, bytes) else None
        if parts is None:
            raise IntegrityError(f"{place} answers a request for classes with {row!r:.80}", advice=ADVICE)
        labels[int(parts[1])] = parts[2].decode(errors="replace") if parts[2] is not None else None
    return labels

"""A part: the file that one shard leaves, with what it was made of, so that no part of anything else is taken for it.

The first line is a magic word, the layout's version and the SHA-256 of all that follows: a line of JSON, and an .npz.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, JsonValue, ValidationError

from skdeploy.core.errors import IntegrityError, UsageError, first_problem
from skdeploy.core.files import read_file, written_whole
from skdeploy.core.progress import Progress
from skdeploy.core.spec import Frozen
from skdeploy.images.numpy_file import READING, arrays_inside
from skdeploy.shards.machine import machine_kind
from skdeploy.shards.shard import Shard

MAGIC: Final = b"skdeploy-part-1"
Verb = Literal["evaluate", "calibrate", "sensitivity", "tune"]
Facts = TypeVar("Facts", bound=Frozen)


class Job(Frozen):
    """The things that all parts of one job have in common.

    ``made_of``: SHA-256 of each artifact, by its name. ``data_sha256`` identifies the list of samples and their labels, and
    ``samples`` is their number. ``options`` are those that change a part. ``versions``: of the packages that compute.
    """

    verb: Verb
    made_of: dict[str, str]
    data: str
    data_sha256: str
    samples: Annotated[int, Field(ge=0)]
    options: dict[str, JsonValue]
    versions: dict[str, str]


class Header(Frozen):
    """A part without its arrays. ``facts`` are the verb's own; ``cpu`` the kind of machine, for they round differently."""

    job: Job
    index: Annotated[int, Field(ge=1)]
    count: Annotated[int, Field(ge=1)]
    cpu: str
    seconds: float
    facts: dict[str, JsonValue]

    @property
    def shard(self) -> Shard:
        return Shard(self.index, self.count)

    def is_of(self, job: Job, shard: Shard, cpu: str) -> bool:
        """Whether it is what this shard of the job gives on such a machine."""
        return (self.job, self.shard, self.cpu) == (job, shard, cpu)


@dataclass(frozen=True)
class Part:
    """A part in memory. ``name`` is what messages call it: its file."""

    header: Header
    arrays: Mapping[str, NDArray[Any]]
    name: str = ""

    @classmethod
    def made(
        cls, job: Job, shard: Shard, seconds: float, facts: Frozen, arrays: Mapping[str, NDArray[Any]] | None = None
    ) -> Self:
        """The part that this machine made of a shard in ``seconds``."""
        header = Header(
            job=job,
            index=shard.index,
            count=shard.count,
            cpu=machine_kind(),
            seconds=round(seconds, 3),
            facts=facts.model_dump(mode="json"),
        )
        return cls(header, arrays or {}, f"shard {shard}")

    def facts_as(self, kind: type[Facts]) -> Facts:
        """The verb's own facts. Raises IntegrityError where they are not such."""
        try:
            return kind.model_validate(self.header.facts)
        except ValidationError as error:
            raise self.other_content() from error

    def other_content(self) -> IntegrityError:
        """The error of a whole part, of the right job, whose content cannot be its shard's."""
        return IntegrityError(
            f"{self.name} does not hold what shard {self.header.shard} of this `skdeploy {self.header.job.verb}` should",
            advice="make that part again",
        )

    def encode(self) -> bytes:
        """The bytes of the file."""
        packed = io.BytesIO()
        arrays: dict[str, Any] = dict(self.arrays)
        np.savez(packed, **arrays)
        content = self.header.model_dump_json().encode() + b"\n" + packed.getvalue()
        return b"%s %s\n%s" % (MAGIC, hashlib.sha256(content).hexdigest().encode(), content)


def write_part(path: Path, content: bytes) -> None:
    """Replaces the file, whole or not at all: of two runs into one file, one part stays. Raises as ``written_whole``."""
    with written_whole(path) as partial:
        partial.write_bytes(content)


def earlier_part(path: Path) -> Part | None:
    """The part that is there already, if any: a damaged one is made again."""
    try:
        return read_part(path) if path.exists() else None
    except IntegrityError:
        return None


def earlier_or_made(earlier: Part | None, job: Job, shard: Shard, tell: Progress, make: Callable[[], Part]) -> Part:
    """``earlier``, if it is this shard's part by a machine of this kind; else the part that ``make`` gives.

    Raises UsageError if ``earlier`` is another shard of the same division.
    """
    if earlier is not None and earlier.header.is_of(job, shard, machine_kind()):
        return earlier
    refuse_other_shard(earlier, job, shard)
    tell.begin(job.verb)
    part = make()
    tell.end(job.verb, part.header.seconds, reused=False)
    return part


def refuse_other_shard(there: Part | None, job: Job, shard: Shard) -> None:
    """Raises UsageError if the part that is ``there`` is another shard of the same division: it would be lost."""
    if there is None or there.header.job != job or there.header.count != shard.count:
        return
    if there.header.index != shard.index:
        raise UsageError(
            f"{there.name} holds shard {there.header.shard}, which shard {shard} would replace",
            advice="give each shard a file of its own with -o, or replace it with --fresh",
        )


def read_part(path: Path) -> Part:
    """Raises IntegrityError for a file that is missing, not a part, cut off or damaged, naming it."""
    try:
        content = read_file(path)
    except OSError as error:
        raise IntegrityError(f"cannot read the part {path}: {error.strerror}", advice=_AGAIN) from error
    return decode(content, str(path))


def decode(content: bytes, name: str) -> Part:
    """A part from its bytes. Raises IntegrityError as ``read_part``."""
    magic, _, rest = content.partition(b" ")
    digest, _, rest = rest.partition(b"\n")
    if magic != MAGIC:
        raise IntegrityError(f"{name} is not a part that --shard of this skdeploy made", advice=_AGAIN)
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        raise IntegrityError(f"the part {name} is cut off or damaged: its SHA-256 is another", advice=_AGAIN)
    header, _, packed = rest.partition(b"\n")
    try:
        return Part(Header.model_validate_json(header), arrays_inside(packed), name)
    except ValidationError as error:
        raise IntegrityError(
            f"{name} is not a whole part: {first_problem(error, 'its header')}", advice=_AGAIN
        ) from error
    except READING as error:
        raise IntegrityError(f"{name} is not a whole part: {error}", advice=_AGAIN) from error


_AGAIN: Final = "make that part again with --shard, or leave the file out of --parts"

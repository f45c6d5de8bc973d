"""A file of a bundle with its digest, what its station says of it, and where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field, JsonValue, SerializeAsAny

from skdeploy.bundle.station_facts import GraphFacts, StationFacts, UnreadFacts, read_as, read_facts_of
from skdeploy.core.errors import IntegrityError
from skdeploy.core.files import digest_json
from skdeploy.core.spec import Frozen, InnerPath, Precision, TensorSpec

FactsT = TypeVar("FactsT", bound=StationFacts)


class Provenance(Frozen):
    """How an artifact was made. ``key`` is the digest of the station's name and all the rest but ``seconds``: equal keys, equal
    work.
    """

    key: str
    parents: dict[str, str]
    options: dict[str, JsonValue]
    tools: dict[str, str]
    seconds: float


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class DataFile(Frozen):
    """The second file of a graph whose weights do not fit in one: more than 2 GB."""

    path: InnerPath
    sha256: Sha256


class Artifact(Frozen):
    """One file of a bundle; ``path`` is relative to the bundle's folder and stays inside it.

    ``data`` is a second file that belongs to it, or None. ``size_bytes`` counts both; ``sha256`` is the first one's,
    which holds the digest of the second.
    """

    path: InnerPath
    format: Literal["safetensors", "onnx", "engine", "json", "cache"]
    precision: Precision | None
    sha256: Sha256
    size_bytes: int
    data: DataFile | None = None
    inputs: Annotated[tuple[TensorSpec, ...], Field(strict=False)] = ()
    outputs: Annotated[tuple[TensorSpec, ...], Field(strict=False)] = ()
    facts: Annotated[SerializeAsAny[StationFacts], BeforeValidator(read_facts_of)]
    provenance: Provenance

    @property
    def words(self) -> str:
        """The precision that people read. A graph with the Q/DQ of its file is FP32 only between them."""
        if self.precision is None:
            return ""
        scaled = isinstance(self.facts, GraphFacts) and self.facts.has_qdq and not self.precision.beside
        return f"{self.precision.words}+Q/DQ" if scaled else self.precision.words

    @property
    def files(self) -> tuple[str, ...]:
        """Its files, relative to the bundle's folder."""
        return (self.path,) if self.data is None else (self.path, self.data.path)

    @property
    def station(self) -> str:
        """The name of the station that made it."""
        return self.facts.station

    def facts_as(self, kind: type[FactsT]) -> FactsT:
        """The facts, of the kind that the artifact's station writes. Raises IntegrityError if the manifest has others."""
        facts = read_as(kind, self.facts)
        if isinstance(facts, UnreadFacts):
            engine = self.format == "engine"
            raise IntegrityError(
                f"this version of skdeploy did not write the manifest's facts of {self.path}: {facts.problem}",
                advice=f"remove {self.path} from the bundle, and build it again: skdeploy build BUNDLE"
                if engine
                else "restore the manifest, or export again into another folder",
            )
        if not isinstance(facts, kind):
            raise IntegrityError(
                f"the manifest says that the station {self.station!r} made {self.path}, which cannot be",
                advice="restore the manifest, or export again into another folder",
            )
        return facts


def tool_versions(distributions: tuple[str, ...]) -> dict[str, str]:
    """Installed versions, read from package metadata without importing anything."""
    return {name: _version(name) for name in distributions}


@cache
def _version(distribution: str) -> str:
    """Read once a process: parsing a package's metadata takes 10 ms, and a small export asked 46 times."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"


def recipe_key(
    station: str, parents: Mapping[str, str], options: Mapping[str, JsonValue], tools: Mapping[str, str]
) -> str:
    """The key that decides whether a station must run again."""
    return digest_json([station, dict(parents), dict(options), dict(tools)])

"""Runs stations into a bundle, or finds that their earlier results hold."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.station_facts import GraphFacts
from skdeploy.core.progress import Progress
from skdeploy.line.station import FactsT, Inputs, OptionsT, Station


class Follower(Protocol):
    """Gets an artifact, and whether it is an earlier one that stands."""

    def __call__(self, artifact: Artifact, *, reused: bool) -> None: ...


@dataclass
class Line:
    """Remembers which artifacts are current. Parents are found and checked here, once."""

    bundle: Bundle
    progress: Progress
    artifacts: tuple[Artifact, ...] = ()
    reused: set[str] = field(default_factory=set)
    refused: bool = False  # by TensorRT's parser, and told
    follower: Follower | None = None  # is told of each artifact
    alone: Callable[[], AbstractContextManager[None]] = nullcontext  # while a station needs all cores and much memory

    def run(self, station: Station[OptionsT, FactsT], options: OptionsT, **parents: Artifact) -> Artifact:
        """The artifact of a station, made unless an earlier one stands. ``parents``: earlier artifacts, by their role.

        Says what a person must know of it. Raises what the station raises, and IntegrityError for a parent that was altered.
        """
        started = time.perf_counter()
        self.progress.begin(station.name)
        inputs = self.inputs(**parents)
        recipe = station.recipe(inputs, options)
        artifact = self.bundle.up_to_date(recipe)
        if artifact is not None:
            self.reused.add(artifact.path)
        else:
            artifact = self.bundle.produce(recipe, lambda out: station.make(inputs, options, out))
        facts = artifact.facts_as(station.facts)
        artifact = artifact.model_copy(
            update={"facts": facts}
        )  # read as this station's, if the manifest did not know them
        self.artifacts = (*self.artifacts, artifact)
        reused = artifact.path in self.reused
        self.progress.end(station.name, time.perf_counter() - started, reused=reused)
        if self.follower is not None:
            self.follower(artifact, reused=reused)
        self.note(*station.notes(facts))
        if isinstance(facts, GraphFacts) and facts.parser_refusal and not self.refused:
            self.refused = True  # once: later graphs are refused for the same nodes
            self.note(
                f"{artifact.path} is valid ONNX and runs on ONNX Runtime, but no engine can be built from it: "
                f"{facts.parser_refusal}"
            )
        return artifact

    def inputs(self, **parents: Artifact) -> Inputs:
        """Collect a station's inputs from earlier artifacts. Raises IntegrityError for one that is missing or was changed."""
        paths: dict[str, Path] = {role: self.bundle.check(artifact) for role, artifact in parents.items()}
        return Inputs(self.bundle.manifest.model, parents, paths, self.progress)

    def note(self, *notes: str) -> None:
        """Says it now, and in the manifest."""
        self.bundle.adopt(self.bundle.manifest.model, notes)
        for note in notes:
            self.progress.note(note)

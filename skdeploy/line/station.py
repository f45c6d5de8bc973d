"""A station of the line: it makes a file from files, by its own options alone."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Generic, Literal, TypeVar

from pydantic import JsonValue

from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Recipe
from skdeploy.bundle.station_facts import StationFacts
from skdeploy.core.options import Options, StationOptions
from skdeploy.core.panel import Panel
from skdeploy.core.progress import Progress
from skdeploy.core.spec import ModelSpec, Precision
from skdeploy.passes.trace_options import TraceOptions

if TYPE_CHECKING:
    import onnx_ir as ir

GRAPH_TOOLS: Final = ("skdeploy", "onnx", "onnx-ir")
RUN_TOOLS: Final = ("skdeploy", "torch", "onnxruntime", "onnxruntime-gpu")
CALIBRATION_TOOLS: Final = ("skdeploy", "numpy", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "pillow")

OptionsT = TypeVar("OptionsT", bound=Options)
FactsT = TypeVar("FactsT", bound=StationFacts)


class RewriteOptions(StationOptions):
    """Options of a pass for hardware (``rewrites.py``); it runs unless they are at their defaults."""

    panel = Panel.GRAPH

    def check_trace(self, trace: TraceOptions) -> None:
        """Raises UsageError for an interface of the graph that the pass cannot work with."""


@dataclass(frozen=True)
class Inputs:
    """A station's inputs: the network's spec, earlier artifacts by their role, and their files, with checked digests."""

    spec: ModelSpec
    artifacts: Mapping[str, Artifact]
    paths: Mapping[str, Path]
    progress: Progress

    def load(self, role: str = "graph") -> ir.Model:
        """The graph in the file of that role."""
        from skdeploy.backends.onnxruntime import load_graph

        return load_graph(self.paths[role])


class Station(abc.ABC, Generic[OptionsT, FactsT]):
    """One step of the line. ``words`` is what people read of it, ``tools`` the distributions whose version changes its result.

    A station has what it needs besides artifacts and options, such as images, from its constructor; ``sources`` and
    ``settings`` say what of that decides the result.
    """

    name: ClassVar[str]
    words: ClassVar[str]
    format: ClassVar[Literal["safetensors", "onnx", "engine", "json", "cache"]]
    tools: ClassVar[tuple[str, ...]]
    facts: type[FactsT]
    flags: ClassVar[tuple[type[StationOptions], ...]] = ()  # the options of an export that ``settings`` records
    precision: Precision | None = None  # of a graph that it writes; None for "as the graph before", or no graph

    @abc.abstractmethod
    def output(self, inputs: Inputs) -> str:
        """The file's name in the bundle."""

    @abc.abstractmethod
    def make(self, inputs: Inputs, options: OptionsT, out: Path) -> FactsT:
        """Writes the file and says what it is. Raises a SkdeployError that names the file or node, why, and what next."""

    def sources(self, inputs: Inputs) -> Mapping[str, str]:
        """Digests, by name, of what it is made from besides artifacts."""
        return {}

    def settings(self, inputs: Inputs, options: OptionsT) -> Mapping[str, JsonValue]:
        """All that decides the result and is not a file. The options alone, unless a station says otherwise."""
        return options.record()

    def is_reusable(self) -> bool:
        """Whether sources and settings tell all that the result depends on: if not, it is made anew each time."""
        return True

    def notes(self, facts: FactsT) -> tuple[str, ...]:
        """Notes on the result, for the user."""
        return ()

    def recipe(self, inputs: Inputs, options: OptionsT) -> Recipe:
        """The key that decides the file."""
        graph = inputs.artifacts.get("graph")
        before = graph.precision if graph is not None and self.format in ("onnx", "engine") else None
        return Recipe(
            station=self.name,
            output=self.output(inputs),
            format=self.format,
            precision=self.precision or before,
            parents={a.path: a.sha256 for a in inputs.artifacts.values()} | dict(self.sources(inputs)),
            options=self.settings(inputs, options),
            tools=self.tools,
            reusable=self.is_reusable(),
        )

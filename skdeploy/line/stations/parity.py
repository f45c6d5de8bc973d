"""Every artifact against torch, or against the file as it came, on real images; or against what its author computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from skdeploy.bundle import contents
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle, Recipe
from skdeploy.bundle.station_facts import ParityFacts
from skdeploy.checkpoints.load import Network, OwnNetwork
from skdeploy.core.options import NoOptions
from skdeploy.core.progress import Progress
from skdeploy.core.spec import ModelSpec, Precision
from skdeploy.devices import cuda
from skdeploy.images.dataset import Dataset
from skdeploy.line.station import RUN_TOOLS, Inputs, Station

if TYPE_CHECKING:
    from skdeploy.parity.report import ParityReport
    from skdeploy.parity.witness import Witness


def _taken(spec: ModelSpec) -> dict[str, JsonValue]:
    """Return how an image becomes the input, or the inputs that are not images."""
    if not spec.takes_images:
        taken: dict[str, JsonValue] = spec.model_dump(mode="json", include={"inputs", "sizes"})
        return taken
    return {"preprocess": spec.preprocess.model_dump(mode="json") | {"exif": spec.preprocess.exif}}


def device_names() -> list[JsonValue]:
    """The GPUs of this machine in words, as keys of stations that depend on them."""
    return [f"{device.name}, compute capability {device.compute_capability}" for device in cuda.devices()]


def write_report(report: ParityReport, path: Path) -> ParityFacts:
    """Saves a parity report."""
    path.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return ParityFacts(verdict=report.verdict)


@dataclass(frozen=True)
class Parity(Station[NoOptions, ParityFacts]):
    """Of all artifacts of the line. Nothing tells whether an author's code has changed: it is asked anew each time."""

    prove: Callable[[tuple[Artifact, ...], Progress], ParityReport]
    artifacts: tuple[Artifact, ...]
    dataset: Dataset
    network: Network | OwnNetwork | None
    witness: Witness | None = None

    name, words, format, facts = "parity", "parity", "json", ParityFacts
    tools = RUN_TOOLS

    @property
    def _golden(self) -> str:
        from skdeploy.parity.golden import Golden

        return self.witness.sha256 if isinstance(self.witness, Golden) else ""

    def is_reusable(self) -> bool:
        return not isinstance(self.network, OwnNetwork) and (self.witness is None or bool(self._golden))

    def output(self, inputs: Inputs) -> str:
        return contents.PARITY

    def sources(self, inputs: Inputs) -> Mapping[str, str]:
        made = {artifact.path: artifact.sha256 for artifact in self.artifacts}
        return made | {"images": self.dataset.digest} | ({"golden": self._golden} if self._golden else {})

    def settings(self, inputs: Inputs, options: NoOptions) -> Mapping[str, JsonValue]:
        from skdeploy.parity.suites import SYNTHETIC

        spec = inputs.spec
        return {
            **spec.model_dump(mode="json", include={"task"}),
            **_taken(spec),
            "tolerance": spec.model_dump(mode="json", include={"tolerance"}),
            "suites": list(SYNTHETIC),
            "chosen": self.dataset.chosen,
            "devices": device_names(),
        }

    def make(self, inputs: Inputs, options: NoOptions, out: Path) -> ParityFacts:
        return write_report(self.prove(self.artifacts, inputs.progress), out)


def add_unproven_engine(bundle: Bundle, parity: Artifact, engine: Artifact, compiler: str, reason: str) -> Artifact:
    """The parity report of an export, with an engine that was built after it: named, and not proven. The rest is kept."""
    from skdeploy.parity.report import Comparison, ParityReport

    measured = parity.provenance

    def make(out: Path) -> ParityFacts:
        report = bundle.read_report(parity, ParityReport)
        comparison = Comparison(
            artifact=engine.path,
            backend=compiler,
            precision=engine.precision or Precision.FP32,
            verdict="unproven",
            reason=reason,
        )
        return write_report(report.with_unproven(comparison), out)

    recipe = Recipe(
        station=Parity.name,
        output=contents.PARITY,
        format=Parity.format,
        precision=None,
        parents={**measured.parents, engine.path: engine.sha256},
        # Whatever was measured was measured with the tools of then. An export has none of these two, so it measures anew.
        options={"measured_with": dict(measured.tools), **measured.options, "built_since": engine.sha256},
        tools=("skdeploy",),
        reusable=False,
    )
    return bundle.produce(recipe, make)

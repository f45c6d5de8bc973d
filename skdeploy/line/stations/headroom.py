"""How much of FP16's range real images use, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from skdeploy.bundle import contents
from skdeploy.bundle.station_facts import HalvedFacts, HeadroomFacts
from skdeploy.core.options import NoOptions
from skdeploy.line.station import RUN_TOOLS, Inputs, Station

if TYPE_CHECKING:
    from skdeploy.images.dataset import Dataset

BATCH: Final = 1  # every tensor of every image is held at once, beside what proves the graphs


@dataclass(frozen=True)
class Headroom(Station[NoOptions, HeadroomFacts]):
    """Of the tensors that are FP16 in ``halved``, when ``graph`` runs: FP32, or the INT8 graph, which then is both."""

    dataset: Dataset

    name, words, format, facts = "headroom", "FP16 headroom", "json", HeadroomFacts
    tools = RUN_TOOLS

    def output(self, inputs: Inputs) -> str:
        return contents.HEADROOM

    def sources(self, inputs: Inputs) -> Mapping[str, str]:
        return {"images": self.dataset.digest}

    def make(self, inputs: Inputs, options: NoOptions, out: Path) -> HeadroomFacts:
        from skdeploy.images.feeds import batches_of
        from skdeploy.parity.headroom import measure_headroom

        spec, halved = inputs.spec, inputs.artifacts["halved"]
        batches = batches_of(self.dataset.load(spec), spec, inputs.artifacts["graph"].inputs, BATCH)
        tensors = halved.facts_as(HalvedFacts).fp16_tensors
        report = measure_headroom(inputs.paths["graph"], list(tensors), batches, self.dataset.name)
        report = report.model_copy(update={"sample": spec.sample_word})
        out.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
        least = report.tensors[0]
        return HeadroomFacts(least_headroom=least.headroom, tensor=least.tensor)

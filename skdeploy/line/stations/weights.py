"""A checkpoint of any known layout to canonical weights, or random ones from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skdeploy.bundle import contents
from skdeploy.bundle.station_facts import WeightsFacts
from skdeploy.checkpoints.weights_record import WeightsRecord
from skdeploy.core.files import digest_json
from skdeploy.core.options import NoOptions
from skdeploy.core.spec import ModelSpec, Precision
from skdeploy.line.station import Inputs, Station

if TYPE_CHECKING:
    from skdeploy.checkpoints.importing import Imported
    from skdeploy.line.apart import Apart


@dataclass(frozen=True)
class Weights(Station[NoOptions, WeightsFacts]):
    record: WeightsRecord
    checkpoint: Path | None
    imported: Imported | None = None  # where the spec was inferred, the weights are in memory already
    apart: Apart | None = None  # the process that makes them, if this one does not

    name, words, format, facts = "weights", "weights", "safetensors", WeightsFacts
    tools = ("skdeploy", "torch", "safetensors")
    precision = Precision.FP32

    def output(self, inputs: Inputs) -> str:
        return contents.WEIGHTS

    def sources(self, inputs: Inputs) -> Mapping[str, str]:
        return {
            "card": digest_json(  # what a card says, and what it leaves to the layout
                inputs.spec.model_dump(
                    mode="json", by_alias=True, include={"network", "image", "assumed"}, exclude_unset=True
                )
            ),
            "weights": self.record.sha256 or f"random, seed {self.record.seed}",
        }

    def make(self, inputs: Inputs, options: NoOptions, out: Path) -> WeightsFacts:
        from skdeploy.checkpoints.importing import import_checkpoint, random_weights, save_weights

        spec = inputs.spec
        if self.apart is not None:
            checkpoint = str(self.checkpoint.absolute()) if self.checkpoint is not None else None
            record = self.record.model_dump(mode="json")
            return self.apart.make(WeightsFacts, self.name, spec, out, checkpoint=checkpoint, record=record)
        found = self.imported
        if found is None and self.checkpoint is not None:
            found = import_checkpoint(self.checkpoint, spec)
        elif found is None:
            found = random_weights(spec, self.record.seed or 0)
        save_weights(found.state, out)
        return WeightsFacts(
            layout=found.layout, network=found.spec.network, notes=tuple(found.notes), assumed=found.spec.assumed
        )

    def notes(self, facts: WeightsFacts) -> tuple[str, ...]:
        return facts.notes


def fitted_spec(spec: ModelSpec, facts: WeightsFacts) -> ModelSpec:
    """The spec that canonical weights fit exactly."""
    return spec.of_network(facts.network, facts.assumed)

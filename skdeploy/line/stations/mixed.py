"""The units that must stay in the fallback, so that INT8 costs no more than a budget on images with labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from skdeploy.bundle import contents
from skdeploy.bundle.station_facts import MixedFacts
from skdeploy.core.spec import ModelSpec
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.station import CALIBRATION_TOOLS, Inputs, Station
from skdeploy.quant.ranges import load_ranges

if TYPE_CHECKING:
    from skdeploy.images.dataset import Dataset


def _arrays(spec: ModelSpec) -> dict[str, JsonValue]:
    taken: dict[str, JsonValue] = spec.model_dump(mode="json", include={"inputs", "sizes"})
    return taken


@dataclass(frozen=True)
class Mixed(Station[Int8Options, MixedFacts]):
    """``data`` has labels, in the network's order; ``max_drop`` is the budget in percentage points of top-1; ``keep`` stays
    out of INT8 whatever the search finds.
    """

    data: Dataset
    max_drop: float
    keep: tuple[str, ...]

    name, words, format, facts = "mixed", "mixed precision", "json", MixedFacts
    tools = CALIBRATION_TOOLS

    def output(self, inputs: Inputs) -> str:
        return contents.MIXED

    def sources(self, inputs: Inputs) -> Mapping[str, str]:
        assert self.data.labels is not None  # ``labels.as_the_network_counts`` raises where there are none
        return {"data": self.data.digest, "labels": hashlib.sha256(self.data.labels.tobytes()).hexdigest()}

    def settings(self, inputs: Inputs, options: Int8Options) -> Mapping[str, JsonValue]:
        return {
            "max_drop": self.max_drop,
            **({"exif": inputs.spec.preprocess.exif} if inputs.spec.takes_images else _arrays(inputs.spec)),
            "keep": list(self.keep),
            "keep_grouped": options.keep_grouped,
            "name": self.data.name,
        }

    def make(self, inputs: Inputs, options: Int8Options, out: Path) -> MixedFacts:
        from skdeploy.quant.mixed import search

        assert self.data.labels is not None
        found = search(
            inputs.load(),
            inputs.spec,
            load_ranges(inputs.paths["ranges"]),
            self.data.load(inputs.spec),
            self.data.labels,
            self.max_drop,
            keep=self.keep,
            keep_grouped=options.keep_grouped,
            dataset=self.data.name,
            progress=inputs.progress,
        )
        out.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return MixedFacts(keep=tuple(found.keep), units=found.units, evaluations=found.evaluations)

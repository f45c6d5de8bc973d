"""The units that must stay in the fallback, so that INT8 costs no more than a budget on images with labels, or on pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from skdeploy.bundle import contents
from skdeploy.bundle.station_facts import MixedFacts
from skdeploy.core.files import digest_file, digest_json
from skdeploy.core.spec import ModelSpec
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.station import CALIBRATION_TOOLS, Inputs, Station
from skdeploy.quant.ranges import load_ranges

if TYPE_CHECKING:
    from skdeploy.accuracy.pairs_as_truth import PairsAsTruth
    from skdeploy.images.dataset import Dataset
    from skdeploy.quant.effect import Crops


def _arrays(spec: ModelSpec) -> dict[str, JsonValue]:
    taken: dict[str, JsonValue] = spec.model_dump(mode="json", include={"inputs", "sizes"})
    return taken


@dataclass(frozen=True)
class Mixed(Station[Int8Options, MixedFacts]):
    """``data`` has labels, in the network's order, or is pairs; ``max_drop`` is the budget in percentage points of top-1, or in
    the unit of what is measured of pairs; ``keep`` stays out of INT8 whatever the search finds.
    """

    data: Dataset | PairsAsTruth
    max_drop: float
    keep: tuple[str, ...]

    name, words, format, facts = "mixed", "mixed precision", "json", MixedFacts
    tools = CALIBRATION_TOOLS

    @property
    def shown(self) -> str:
        """The name of the images in a report."""
        from skdeploy.images.dataset import Dataset

        return self.data.name if isinstance(self.data, Dataset) else self.data.pairs.name

    def output(self, inputs: Inputs) -> str:
        return contents.MIXED

    def sources(self, inputs: Inputs) -> Mapping[str, str]:
        from skdeploy.images.dataset import Dataset

        if not isinstance(self.data, Dataset):
            pairs, own = self.data.pairs, self.data.own
            # Not by its name: a record names no code to run.
            code = {} if own is None else {"metric": digest_json([own.name, digest_file(Path(own.file))])}
            return {"data": pairs.inputs.digest, "targets": pairs.targets_digest, **code}
        assert self.data.labels is not None  # ``labels.as_the_network_counts`` raises where there are none
        return {"data": self.data.digest, "labels": hashlib.sha256(self.data.labels.tobytes()).hexdigest()}

    def settings(self, inputs: Inputs, options: Int8Options) -> Mapping[str, JsonValue]:
        return {
            "max_drop": self.max_drop,
            **({"exif": inputs.spec.preprocess.exif} if inputs.spec.takes_images else _arrays(inputs.spec)),
            "keep": list(self.keep),
            "keep_grouped": options.keep_grouped,
            "name": self.shown,
        }

    def make(self, inputs: Inputs, options: Int8Options, out: Path) -> MixedFacts:
        from skdeploy.images.dataset import Dataset
        from skdeploy.quant.mixed import search
        from skdeploy.quant.truth import ClassLabels, Truth

        crops: Crops
        truth: Truth
        if isinstance(self.data, Dataset):
            assert self.data.labels is not None
            crops, truth = self.data.load(inputs.spec), ClassLabels(self.data.labels)
        else:
            crops, truth = self.data.crops, self.data
        found = search(
            inputs.load(),
            inputs.spec,
            load_ranges(inputs.paths["ranges"]),
            crops,
            truth,
            self.max_drop,
            keep=self.keep,
            keep_grouped=options.keep_grouped,
            dataset=self.shown,
            progress=inputs.progress,
        )
        out.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return MixedFacts(keep=tuple(found.keep), units=found.units, evaluations=found.evaluations)

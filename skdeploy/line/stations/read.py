"""An ONNX file made elsewhere, with our names and a known opset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skdeploy.bundle import contents
from skdeploy.bundle.station_facts import ReadFacts
from skdeploy.checkpoints.weights_record import WeightsRecord
from skdeploy.core.spec import Precision
from skdeploy.line.station import GRAPH_TOOLS, Inputs, Station
from skdeploy.line.written import write_graph
from skdeploy.passes.read_options import ReadOptions

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Read(Station[ReadOptions, ReadFacts]):
    """Read anew each time: the file's data may lie in other files. ``last``: whether no FP32 graph is made of it."""

    graph: ir.Model
    record: WeightsRecord
    last: bool = False

    name, words, format, facts = "read", "read ONNX", "onnx", ReadFacts
    flags = (ReadOptions,)
    tools = GRAPH_TOOLS
    precision = Precision.FP32

    def is_reusable(self) -> bool:
        return False

    def output(self, inputs: Inputs) -> str:
        return contents.MODEL if self.last else contents.READ

    def sources(self, inputs: Inputs) -> Mapping[str, str]:
        return {"file": self.record.sha256 or ""} | self.record.data

    def make(self, inputs: Inputs, options: ReadOptions, out: Path) -> ReadFacts:
        return write_graph(self.graph, out, ReadFacts(), any_rank=True)

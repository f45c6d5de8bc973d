"""Options of the trace: the graph's interface."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from skdeploy.core.errors import UsageError
from skdeploy.core.options import Flag, StationOptions
from skdeploy.core.panel import Panel

MIN_OPSET: Final = 19  # the first with FP16 scales for Q/DQ
MAX_OPSET: Final = 20  # the last that TensorRT 10.3 (JetPack 6.1) parses


class TraceOptions(StationOptions):
    """The graph's interface. ``batch`` None means dynamic; ``dynamic_size`` frees height and width too."""

    panel = Panel.GRAPH
    exporter: Annotated[Literal["dynamo", "torchscript"], Flag("torch.onnx exporter to use.")] = "dynamo"
    opset: Annotated[int, Flag("ONNX opset, 19 or 20.")] = MIN_OPSET
    batch: Annotated[int | None, Flag("Fix the batch size.  [default: dynamic]")] = None
    dynamic_size: Annotated[bool, Flag("Accept images of any height and width.")] = False
    attention: Annotated[bool, Flag("Add an output with the attention of each SK unit.")] = False
    embed_preprocess: Annotated[bool, Flag("Make a graph that takes uint8 NHWC images and normalises them itself.")] = (
        False
    )

    def check(self) -> None:
        """Raises UsageError for what cannot be."""
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise UsageError(
                f"--opset {self.opset}: must be from {MIN_OPSET} to {MAX_OPSET}, which every TensorRT from 10.3 parses"
            )
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"--batch {self.batch}: must be at least 1")

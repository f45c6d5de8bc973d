"""What a traced graph's interface is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

MIN_OPSET: Final = 19  # the first with FP16 scales for Q/DQ
MAX_OPSET: Final = 20  # the last that TensorRT 10.3 (JetPack 6.1) parses


@dataclass(frozen=True)
class TraceOptions:
    """What the graph's interface is. ``batch`` None means dynamic; ``dynamic_size`` frees height and width too."""

    exporter: Literal["dynamo", "torchscript"] = "dynamo"
    opset: int = MIN_OPSET
    batch: int | None = None
    dynamic_size: bool = False
    attention: bool = False
    embed_preprocess: bool = False

"""File names in a bundle."""

from __future__ import annotations

from typing import Final

WEIGHTS: Final = "weights.safetensors"
CARD: Final = "card.toml"  # no artifact: what was inferred of a checkpoint, for people to correct
READ: Final = "model.read.onnx"
TRACED: Final = "model.traced.onnx"
MODEL: Final = "model.onnx"
HALF: Final = "model.fp16.onnx"
BF16: Final = "model.bf16.onnx"
INT8: Final = "model.int8.onnx"
WEIGHT_ONLY: Final = "model.weight-only-int8.onnx"
RANGES: Final = "ranges.json"
MIXED: Final = "mixed.json"
LEGACY_GRAPH: Final = "legacy/model.onnx"
LEGACY_CACHE: Final = "legacy/calibration.cache"
HEADROOM: Final = "headroom.json"
PARITY: Final = "parity.json"

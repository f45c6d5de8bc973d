"""What the files of a bundle are called."""

from __future__ import annotations

from typing import Final

WEIGHTS, READ = "weights.safetensors", "model.read.onnx"


TRACED, MODEL, HALF = "model.traced.onnx", "model.onnx", "model.fp16.onnx"


PARSER_REFUSAL: Final = "parser_refusal"  # the key of what TensorRT-RTX said of a graph that it does not take


HEADROOM, PARITY = "headroom.json", "parity.json"

"""Bare inference: ONNX Runtime over the calibration batches, and nothing done with what comes out. Runs in any environment.

python benchmarks/peers/bare.py MODEL.onnx INPUTS.npy COUNT
"""

from __future__ import annotations

import sys
import time

import numpy as np
import onnxruntime as ort

BATCH = 8


def main() -> None:
    model, inputs, count = sys.argv[1:]
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    images = np.load(inputs, mmap_mode="r")[: int(count)]
    started = time.perf_counter()
    for start in range(0, len(images), BATCH):
        session.run(None, {name: np.ascontiguousarray(images[start : start + BATCH])})
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main()

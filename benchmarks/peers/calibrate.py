"""Quantizes with one tool, from the first COUNT calibration inputs, for the measurement of its time and memory.

.venv-peers/bin/python benchmarks/peers/calibrate.py RECIPE MODEL.onnx INPUTS.npy COUNT OUTPUT.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    import numpy as np

    from benchmarks.peers.quantizers import RECIPES

    recipe, model, inputs, count, output = sys.argv[1:]
    images = np.load(inputs, mmap_mode="r")[: int(count)]
    RECIPES[recipe](Path(model), images, frozenset(), Path(output))


if __name__ == "__main__":
    main()

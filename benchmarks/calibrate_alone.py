"""One calibration of SKNet-50 and the seconds that it took, without the start of the process. int8_speed.py runs it.

python benchmarks/calibrate_alone.py MODEL.onnx IMAGES METHOD COUNT
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from skdeploy.backends.onnxruntime import load_graph, open_session
from skdeploy.core.spec import CalibrationMethod
from skdeploy.images.dataset import open_dataset
from skdeploy.quant.calibrate import CalibrationSettings, calibrate
from skdeploy.quant.ranges import Algorithm
from skdeploy.zoo.cards import load_card


def main() -> None:
    model, images, method, count = sys.argv[1:]
    spec, _ = load_card("sknet50")
    graph = load_graph(Path(model))
    with open_session(Path(model)) as session:
        inputs = session.inputs
    dataset = open_dataset(Path(images), int(count))
    settings = CalibrationSettings(Algorithm(method=CalibrationMethod(method), version=1), len(dataset))
    started = time.perf_counter()
    calibrate(graph, inputs, spec, dataset, settings)
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main()

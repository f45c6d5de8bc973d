"""ONNX Runtime on a GPU that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from skdeploy.backends import backend
from skdeploy.backends.onnxruntime_gpu import CUDA, TENSORRT, CudaOptions, TensorRTOptions
from skdeploy.core.errors import EngineError, UsageError
from tests.backends.reshaped import network, written
from tests.conftest import require_backend


def gpu_session(name: str, path: Path, cache: Path | None = None) -> Any:
    require_backend(name)
    options = CudaOptions() if name == CUDA else TensorRTOptions(batch=(1, 4, 8), cache=cache)
    return backend(name).open_session(path, options=options)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [CUDA, TENSORRT])
def test_the_gpu_runs_all_of_it_and_computes_what_the_cpu_does(name: str, tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx")
    reference = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    # FP32 in another order of sums, or by Winograd, whose transforms lose a few bits. TF32 is 5e-4 in each product.
    tolerance = 1e-4
    with gpu_session(name, path) as session:
        for batch in (1, 3, 8):
            images = np.random.default_rng(batch).standard_normal((batch, 3, 8, 8)).astype(np.float32)
            (expected,) = reference.run(["rows"], {"images": images})
            got = session.run({"images": images})["rows"]
            assert got.dtype == expected.dtype
            assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.gpu
@pytest.mark.parametrize("name", [CUDA, TENSORRT])
def test_an_operator_that_the_gpu_lacks_is_named(name: str, tmp_path: Path) -> None:
    """Det has a kernel for the CPU alone."""
    nodes = "[relu] h = Relu(x) [determinant] y = Det(h)"
    written(tmp_path / "d.onnx", f"det (float[2, 3, 3] x) => (float[2] y) {{ {nodes} }}")
    with pytest.raises(EngineError, match=r"determinant \(Det\)"):
        gpu_session(name, tmp_path / "d.onnx")


@pytest.mark.gpu
def test_the_second_opening_loads_the_engine_of_the_first_and_a_changed_one_is_built_again(tmp_path: Path) -> None:
    path, root = network(tmp_path / "m.onnx"), tmp_path / "engines"
    images = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    results, times = [], []
    for _ in range(2):
        with gpu_session(TENSORRT, path, root) as session:
            results.append(session.run({"images": images})["rows"])
        times.append({file.name: file.stat().st_mtime_ns for file in root.glob("*/*.engine")})
    assert times[0] == times[1] != {}
    assert np.array_equal(*results)  # the same engine: the same kernels in the same order
    (engine,) = root.glob("*/*.engine")
    engine.write_bytes(engine.read_bytes()[:-100])
    cut = engine.stat().st_mtime_ns
    gpu_session(TENSORRT, path, root).close()
    assert engine.stat().st_mtime_ns != cut


@pytest.mark.gpu
@pytest.mark.parametrize("name", [CUDA, TENSORRT])
def test_a_gpu_that_is_not_there_is_a_usage_error(name: str, tmp_path: Path) -> None:
    gpu_session(name, network(tmp_path / "m.onnx")).close()
    options = CudaOptions(device=99) if name == CUDA else TensorRTOptions(device=99, cache=None)
    with pytest.raises(UsageError, match="no GPU number 99"):
        backend(name).open_session(tmp_path / "m.onnx", options=options)

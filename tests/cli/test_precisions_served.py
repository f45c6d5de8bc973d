"""Weight-only INT8 and BF16 on the way to a server: Triton's repository and the verb ``start``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.cli.conftest import QUICK, Run

FLAGS = {"weight-only-int8": ("--weight-only", "int8"), "bf16": ("--bf16",)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture
def bundle(run: Run, made: Path, card: Path, weights: Path, images: Path, request: pytest.FixtureRequest) -> Path:
    folder = made / str(request.param)
    if not folder.exists():
        words = (*FLAGS[request.param], *QUICK, "--weights", weights, "--images", images)
        done = run("export", card, *words, "-o", folder)
        assert done.code == 0, done.err
    return folder


@pytest.mark.parametrize("bundle", ["weight-only-int8"], indirect=True)
def test_triton_keeps_the_optimiser_for_weights_in_int8(run: Run, bundle: Path, tmp_path: Path) -> None:
    """No activation is quantized, so nothing is rounded that the graph does not round: the results are those without it."""
    done = run("triton", bundle, "-o", tmp_path / "models")
    assert done.code == 0, done.err
    assert "optimiser" not in done.out + done.err
    assert "optimization" not in (tmp_path / "models/tiny/config.pbtxt").read_text()
    feeds = {"input": np.random.default_rng(0).standard_normal((16, 3, 32, 32)).astype(np.float32)}
    found = []
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(str(tmp_path / "models/tiny/1/model.onnx"), options)
        found.append(session.run(["logits"], feeds)[0])
    # FP16 rounds at 2^-11, and the optimiser may leave some of these roundings out, in a dozen layers.
    assert np.abs(found[0] - found[1]).max() <= 12 * 2**-11 * np.abs(found[0]).max()


@pytest.mark.parametrize("bundle", ["bf16"], indirect=True)
def test_triton_is_refused_what_onnx_runtime_does_not_run(run: Run, bundle: Path, tmp_path: Path) -> None:
    refused = run("triton", bundle, "-o", tmp_path / "models")
    assert refused.code == 2
    assert "is BF16, which ONNX Runtime does not run on Triton" in refused.err
    assert "--backend tensorrt" in refused.err


@pytest.mark.parametrize("bundle", list(FLAGS), indirect=True)
def test_predictions_and_a_comparison_name_the_precision(
    run: Run, bundle: Path, evaluation: Path, images: Path, tmp_path: Path
) -> None:
    precision = bundle.name
    image = next(iter(sorted(images.glob("*.png"))))
    assert f"model.{precision}.onnx" in run("predict", bundle, image).out
    compared = run("compare", bundle, bundle, "--data", evaluation, "--json")
    assert compared.code == 0, compared.err
    assert precision in compared.out

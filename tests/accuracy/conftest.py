"""Two tiny networks in bundles, and images that are labelled as the first one sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from skdeploy.bundle.folder import load_bundle
from skdeploy.core.spec import Precision
from skdeploy.images.dataset import normalise
from skdeploy.line.export import export
from skdeploy.line.options import ExportOptions
from tests.accuracy.figures import IMAGES
from tests.conftest import FAST
from tests.tiny import CARD


@pytest.fixture(scope="session")
def pixels() -> NDArray[np.uint8]:
    """Colours that differ a lot: an untrained network sees one class in all noise."""
    random = np.random.default_rng(0)
    colour = random.integers(0, 256, (IMAGES, 1, 1, 3))
    noise = random.integers(-60, 60, (IMAGES, 36, 36, 3))
    return np.clip(colour + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory, pixels: NDArray[np.uint8]) -> tuple[Path, Path]:
    """Two networks of one architecture, in FP16 and in FP32: their classes have nothing to do with each other."""
    folder = tmp_path_factory.mktemp("bundles")
    np.savez(folder / "few.npz", images=pixels[:4])
    made = []
    for seed, precision in ((1, Precision.FP16), (2, Precision.FP32)):
        made.append(folder / f"seed{seed}")
        export(
            ExportOptions(
                str(CARD),
                precision,
                output=made[-1],
                seed=seed,
                trace=FAST,
                images=folder / "few.npz",
                target="onnx",
            )
        )
    return made[0], made[1]


@pytest.fixture(scope="session")
def logits(bundles: tuple[Path, Path], pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Of the first bundle's FP32 graph, by ONNX Runtime alone: resize is none, and the crop leaves 32 of 36 pixels."""
    session = onnxruntime.InferenceSession(str(bundles[0] / "model.onnx"))
    spec = load_bundle(bundles[0]).manifest.model
    outputs = [
        session.run(["logits"], {"input": normalise(one[None, 2:34, 2:34], spec.preprocess)})[0] for one in pixels
    ]
    return np.concatenate(outputs)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, pixels: NDArray[np.uint8], logits: NDArray[np.float32]) -> Path:
    """Labelled as the first network sees them, but for the first six, which are labelled with the next class."""
    labels = logits.argmax(1)
    assert len(np.unique(labels)) >= 2
    labels[:6] = (labels[:6] + 1) % 5
    path = tmp_path_factory.mktemp("data") / "evaluation.npz"
    np.savez(path, images=pixels, labels=labels)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/skdeploy/predictions"

"""One exported bundle for all tests of the Python interface."""

from __future__ import annotations

from pathlib import Path

import pytest

import skdeploy
from skdeploy.api.bundle import Bundle
from tests import tiny


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    tiny.save(folder, "0.png", "1.png", "2.png", "3.png")
    return folder


@pytest.fixture(scope="session")
def exported(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A verified FP16 bundle. Do not change it."""
    output = tmp_path_factory.mktemp("api") / "bundle"
    return skdeploy.export(
        tiny.CARD, precision="fp16", output=str(output), target="onnx", exporter="torchscript", images=photographs,
        progress=False,
    )  # fmt: skip

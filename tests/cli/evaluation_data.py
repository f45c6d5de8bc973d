"""Labelled images for the tiny bundle, and a bundle with an engine that no machine can run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime

from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.bundle.station_facts import EngineFacts
from skdeploy.images.dataset import normalise
from tests.bundle.recorded import put_engine

CLASSES = 5


def colours(count: int, seed: int = 0) -> np.ndarray:
    """Images (count, 36, 36, 3) that differ in colour: an untrained network sees one class in all noise."""
    random = np.random.default_rng(seed)
    colour = random.integers(0, 256, (count, 1, 1, 3))
    return np.clip(colour + random.integers(-60, 60, (count, 36, 36, 3)), 0, 255).astype(np.uint8)


def seen_by(bundle: Path, images: np.ndarray) -> np.ndarray:
    """The classes that ONNX Runtime's own run of the FP32 graph gives: (count,)."""
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"))
    feed = normalise(images[:, 2:34, 2:34], load_bundle(bundle).manifest.model.preprocess)
    return np.asarray(session.run(["logits"], {"input": feed})[0].argmax(1))


def labelled(bundle: Path, path: Path, count: int = 40, wrong: int = 4) -> Path:
    """An .npz labelled as the bundle sees the images, but for the first ``wrong``."""
    images = colours(count)
    labels = seen_by(bundle, images)
    labels[:wrong] = (labels[:wrong] + 1) % CLASSES
    np.savez(path, images=images, labels=labels)
    return path


def with_engine(bundle: Path, folder: Path) -> Path:
    """A copy that holds an engine of TensorRT, whose plan no TensorRT would take: without a GPU nobody finds out."""
    shutil.copytree(bundle, folder)
    opened: Bundle = load_bundle(folder)
    graph = opened.artifact("model.fp16.onnx")
    assert graph is not None
    facts = EngineFacts(compiler="tensorrt", inputs=graph.inputs, outputs=graph.outputs)
    plan = b"ftrt" + b"\xff" * 24  # TensorRT's tag, with a header of a version that nobody knows
    put_engine(opened, "engines/tensorrt-fp16.engine", plan, facts)
    opened.finish(opened.manifest.artifacts, "verified")
    return folder

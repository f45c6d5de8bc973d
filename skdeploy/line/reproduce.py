"""The options of an export that make the graphs of a bundle again, as its manifest records them."""

from __future__ import annotations

from pathlib import Path

from skdeploy.bundle.contents import RANGES
from skdeploy.bundle.manifest import Manifest
from skdeploy.checkpoints.weights_record import WeightsRecord
from skdeploy.core.spec import Precision
from skdeploy.line.export import words_that_made


def options_that_made(manifest: Manifest, ranges: Path, *, engines: bool = True) -> list[str]:
    """The words of a command line for all graphs, and for the engines unless ``engines`` is false.

    ``ranges`` is where the bundle's ranges file is read from: with it, no image calibrates. Raises IntegrityError for a record
    that no station writes.
    """
    words = []
    if manifest.precision is not Precision.FP32:
        words += manifest.precision.flag.split()
    made = {artifact.station for artifact in manifest.artifacts}
    if "trace" in made and "simplify" not in made:
        words.append("--no-simplify")
    if any(artifact.path == RANGES for artifact in manifest.artifacts):
        words += ["--ranges", str(ranges)]
    kept = [artifact for artifact in manifest.artifacts if engines or artifact.format != "engine"]
    for artifact in kept:
        words += words_that_made(artifact)
    if not any(artifact.format == "engine" for artifact in kept):
        words += ["--target", "onnx"]
    return words


def weights_that_made(weights: WeightsRecord, file: str) -> list[str]:
    """The words that give these weights; ``file`` is where a checkpoint that did not come from a hub lies."""
    if weights.source == "random":
        return ["--seed", str(weights.seed)]
    if weights.repo:
        return ["--weights", f"hf://{weights.repo}" + (f"@{weights.commit}" if weights.commit else "")]
    return ["--weights", file]

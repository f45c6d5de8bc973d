"""The line that made a bundle, as stages to run: torch in float64 and float32, the deploy form, every graph, the engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from skdeploy.backends.onnxruntime import load_graph
from skdeploy.blame.blame import EngineStage, Stage
from skdeploy.blame.layers_graph import GraphStage
from skdeploy.blame.layers_int8 import offsets
from skdeploy.blame.layers_torch import TorchStage
from skdeploy.bundle import contents
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.runners import backend_of
from skdeploy.bundle.station_facts import Int8Facts
from skdeploy.checkpoints.load import Network
from skdeploy.core.errors import IntegrityError
from skdeploy.core.spec import Precision
from skdeploy.images.dataset import Inputs, Pixels, normalise
from skdeploy.quant.quantize import equalized
from skdeploy.quant.ranges import load_ranges

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

FLOAT64, FLOAT32, DEPLOY = "torch float64, training form", "torch float32, training form", "torch float32, deploy form"
BESIDE: Final = (contents.LEGACY_GRAPH,)  # made for others, and nothing on the line is made from it


def chain_of(bundle: Bundle) -> tuple[Stage, ...]:
    """The stages of a bundle, each with the one it was made from. What each one needs is checked against its digest.

    A bundle that was made from a graph or from a module of the user's own begins with its first graph. Raises
    IntegrityError for a file that is missing or altered.
    """

    def feed(pixels: Pixels) -> Inputs:
        return normalise(pixels, bundle.manifest.model.preprocess)

    chain: list[Stage] = []
    weights = bundle.artifact(contents.WEIGHTS)
    if weights is not None:
        chain += _torch_stages(bundle, bundle.check(weights), feed)
    for artifact in bundle.manifest.artifacts:
        if artifact.path in BESIDE:
            continue
        before = _made_from(artifact, chain) or (chain[-1].name if chain else None)
        if artifact.format == "onnx":
            chain.append(_graph_stage(bundle, artifact, feed, before))
        elif artifact.format == "engine":
            precision, spec = artifact.precision or Precision.FP32, bundle.manifest.model
            where = bundle.check(artifact), backend_of(artifact), artifact.sha256
            chain.append(EngineStage(artifact.path, *where, precision, spec, before=before))
    return tuple(chain)


def _torch_stages(bundle: Bundle, weights: Path, feed: Callable[[Pixels], Inputs]) -> list[Stage]:
    network = Network(bundle.manifest.model, weights)

    @cache
    def deploy() -> nn.Module:
        from skdeploy.zoo.fold import fold

        return fold(network.module)

    return [
        TorchStage(FLOAT64, lambda: network.module, feed, double=True),
        TorchStage(FLOAT32, lambda: network.module, feed, before=FLOAT64),
        TorchStage(DEPLOY, deploy, feed, before=FLOAT32, folded=True),
    ]


def _made_from(artifact: Artifact, chain: list[Stage]) -> str | None:
    return next((stage.name for stage in reversed(chain) if stage.name in artifact.provenance.parents), None)


def _graph_stage(
    bundle: Bundle, artifact: Artifact, feed: Callable[[Pixels], Inputs], before: str | None
) -> GraphStage:
    path = bundle.check(artifact)
    plain = GraphStage(
        artifact.path, lambda: load_graph(path), artifact.precision or Precision.FP32, feed, before=before
    )
    if not isinstance(artifact.facts, Int8Facts):
        return plain
    made_from, ranges = bundle.artifact(before or ""), bundle.artifact(contents.RANGES)
    if made_from is None or ranges is None:
        raise IntegrityError(
            f"{bundle.folder} lacks the files that {artifact.path} was made from: the FP32 graph and {contents.RANGES}",
            advice="export it again",
        )
    source, file = bundle.check(made_from), bundle.check(ranges)
    keep, keep_grouped = artifact.provenance.options.get("keep"), artifact.provenance.options.get("keep_grouped")
    patterns = tuple(map(str, keep)) if isinstance(keep, list) else ()
    half = artifact.provenance.options.get("fallback") != Precision.FP32

    @cache
    def twin() -> ir.Model:
        return equalized(load_graph(source), bundle.manifest.model, load_ranges(file))

    def shifts() -> Mapping[str, float]:
        return offsets(twin(), load_ranges(file), patterns, keep_grouped=bool(keep_grouped), half=half)

    before_int8 = GraphStage(f"{made_from.path}, channels equalized", twin, Precision.FP32, feed)
    return replace(plain, twin=before_int8, offsets=shifts)

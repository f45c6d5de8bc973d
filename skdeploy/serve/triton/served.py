"""The artifact of a bundle that a backend of Triton serves, checked against the manifest and the file itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from skdeploy.backends.onnxruntime import load_graph
from skdeploy.backends.rounding import cpu_lacks, narrow_types
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.runners import graph_of, last_graph
from skdeploy.bundle.station_facts import EngineFacts
from skdeploy.core.errors import IntegrityError, UsageError
from skdeploy.engines.compatibility import BuiltFor
from skdeploy.ir.onnx_file import MAX_VALUES
from skdeploy.line.options import DEFAULT_PROFILE
from skdeploy.line.written import tensor_spec
from skdeploy.parity.tasks import task_of
from skdeploy.serve.triton.config import Tensor, tensor_of

BACKENDS: Final = ("onnxruntime", "tensorrt", "python")
FILES: Final = {"onnxruntime": "model.onnx", "python": "model.onnx", "tensorrt": "model.plan"}
TENSORRT: Final = "tensorrt"  # the compiler whose plans Triton loads
NO_OPTIMISER: Final = 2  # Triton's number for ONNX Runtime's ORT_DISABLE_ALL (onnxruntime_backend, src/onnxruntime.cc)

UNOPTIMISED: Final = (
    "ONNX Runtime's optimiser is off (graph level 2): on Triton it would round the FP16 biases beside INT8 away. For "
    "speed, export with --int8-fallback fp32, or use --backend tensorrt"
)


@dataclass(frozen=True)
class Served:
    """An artifact as a model of Triton. ``batched``: the first dimension is a batch that Triton may choose.

    ``graph_level``: see ``ModelConfig``. ``notes`` are for the user.
    """

    artifact: Artifact
    backend: str
    max_batch: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    graph_level: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def batched(self) -> bool:
        return self.max_batch > 0

    @property
    def files(self) -> dict[str, tuple[str, str]]:
        """By the name that Triton gives the file: the bundle's name and the digest in the manifest."""
        found = {FILES[self.backend]: (self.artifact.path, self.artifact.sha256)}
        if self.artifact.data is not None:  # the graph names this file, so it keeps its name
            found[Path(self.artifact.data.path).name] = (self.artifact.data.path, self.artifact.data.sha256)
        return found


def choose(bundle: Bundle, backend: str, max_batch: int | None) -> Served:
    """The artifact that a backend serves: the last graph, or the last engine of TensorRT.

    Raises UsageError for what this backend of Triton's does not run, or not rightly, and for a batch that the artifact does not
    take; IntegrityError for a file that is not the manifest's.
    """
    if backend not in BACKENDS:
        raise UsageError(f"--backend {backend}: Triton is served by one of {', '.join(BACKENDS)}", advice="choose one")
    artifact = _engine(bundle) if backend == TENSORRT else last_graph(bundle).artifact
    bundle.check(artifact)
    level, notes = (None, _engine_notes(artifact)) if backend == TENSORRT else _graph_level(bundle, artifact, backend)
    spec, largest = bundle.manifest.model, _largest_batch(bundle, artifact)
    batch = artifact.inputs[0].shape[0]
    batched = not isinstance(batch, int)
    if max_batch is not None and max_batch < 1:
        raise UsageError(f"--max-batch {max_batch}: give at least 1")
    if not batched and max_batch not in (None, batch):
        raise UsageError(
            f"--max-batch {max_batch}: {artifact.path} has a fixed batch of {batch}",
            advice="leave --max-batch out, or export again without --batch",
        )
    if backend == TENSORRT and max_batch is not None and max_batch > largest:
        raise UsageError(
            f"--max-batch {max_batch}: {artifact.path} takes batches up to {largest}",
            advice=f"build it for more: skdeploy build {bundle.folder} --target tensorrt --max-batch {max_batch}",
        )
    if max_batch is not None:
        _require_room(max_batch, artifact)
    rows = [each for each in artifact.outputs if each.shape[:1] == (batch,)]
    without = [each.name for each in artifact.outputs if each not in rows]
    lacking = [each.name for each in spec.given if each.name not in {row.name for row in rows}]
    if lacking:
        raise UsageError(
            f"{artifact.path} does not give {lacking[0]} with a row for each {spec.sample_word}, as Triton needs it",
            advice="serve it with another server, or export a network whose outputs begin with the batch",
        )
    if without:
        notes = (*notes, f"not served, because they have no row for each {spec.sample_word}: {', '.join(without)}")
    usual = {"height": spec.image.height, "width": spec.image.width} if spec.image is not None else spec.usual_sizes
    labelled = spec.class_tensor.name if spec.labels and task_of(spec).has_classes and not spec.gives_numbers else ""
    return Served(
        artifact,
        backend,
        (max_batch or largest) if batched else 0,
        tuple(tensor_of(each, usual, batched=batched) for each in artifact.inputs),
        tuple(tensor_of(each, usual, batched=batched, labels=each.name == labelled) for each in rows),
        level,
        notes,
    )


def _engine(bundle: Bundle) -> Artifact:
    """The last engine that Triton's tensorrt backend loads. Raises UsageError if there is none, and says what there is."""
    compiled = {engine.path: engine.facts_as(EngineFacts) for engine in bundle.engines}
    plans = [path for path, facts in compiled.items() if facts.compiler == TENSORRT]
    advice = (
        f"build one on the device: skdeploy build {bundle.folder} --target tensorrt; or serve the graph with --backend "
        "onnxruntime"
    )
    if not plans:
        others = [f"{path} was built by {facts.compiler}" for path, facts in compiled.items()]
        why = (
            f"{'; '.join(others)}, whose plans Triton's tensorrt backend does not load"
            if others
            else "it has no engine"
        )
        raise UsageError(f"--backend tensorrt: {bundle.folder} has no engine of TensorRT: {why}", advice=advice)
    path = plans[-1]
    artifact, built = bundle.artifact(path), compiled[path].built_for
    assert artifact is not None  # its path comes from the bundle
    if built is None:
        raise UsageError(f"{path}: the manifest does not say which TensorRT built it", advice=advice)
    if built.stripped:
        raise UsageError(
            f"{path} holds no weights (--strip), and Triton cannot add them", advice="build it without --strip"
        )
    graph_of(bundle, artifact)  # the graph that its parity is about is still there
    low = _profile(artifact)[0]
    if low > 1:
        raise UsageError(
            f"{path} takes no batch below {low}, and Triton would send smaller ones",
            advice="build it with --min-batch 1",
        )
    return artifact


def _engine_notes(artifact: Artifact) -> tuple[str, ...]:
    built = artifact.facts_as(EngineFacts).built_for
    assert isinstance(built, BuiltFor)  # ``_engine`` has seen it
    where = built.gpu or ", ".join(f"compute capability {each}" for each in built.compute_capabilities)
    release = "this version or a later one" if built.version_compatible else "exactly this version"
    return (f"{artifact.path} needs a Triton image with TensorRT {built.version}, {release}, and {where}",)


def _profile(engine: Artifact) -> tuple[int, int]:
    """The smallest and largest batch of an engine's first profile, which is the one that Triton uses."""
    facts = engine.facts_as(EngineFacts)
    shapes = facts.profile.get(engine.inputs[0].name)
    if not (isinstance(shapes, list) and len(shapes) == 3 and all(isinstance(each, list) and each for each in shapes)):
        raise IntegrityError(f"the manifest has no profile of {engine.path}", advice="build it again: skdeploy build")
    low, high = (int(each[0]) for each in (shapes[0], shapes[2]))  # type: ignore[index, arg-type]  # lists, as seen above
    return low, high


def _require_room(max_batch: int, artifact: Artifact) -> None:
    """Raises UsageError for a batch that no tensor holds: Triton makes the largest one to warm the model up."""
    for each in artifact.inputs:
        count = max_batch * math.prod(size for size in each.shape[1:] if isinstance(size, int))
        if count > MAX_VALUES:
            raise UsageError(
                f"--max-batch {max_batch}: {each.name} would have {count:,} values; at most {MAX_VALUES:,} are served",
                advice="give a smaller --max-batch",
            )


def _largest_batch(bundle: Bundle, artifact: Artifact) -> int:
    """The batch of the bundle's profile: the artifact's own, or an engine's that was built from it, or the default."""
    if artifact.format == "engine":
        return _profile(artifact)[1]
    built = [each for each in bundle.engines if each.provenance.parents.get(artifact.path) == artifact.sha256]
    return _profile(built[-1])[1] if built else DEFAULT_PROFILE[2]


def _graph_level(bundle: Bundle, artifact: Artifact, backend: str) -> tuple[int | None, tuple[str, ...]]:
    """How much of ONNX Runtime's optimiser a graph may get, once the file's tensors are those of the manifest.

    Triton cannot set `session.disable_quant_qdq`, and without it the optimiser rounds away the biases of FP16 beside INT8: a
    trained network of 94.6 % top-1 is left with 25 %. Without any optimiser it is right, and slower. Where weights alone are
    INT8, no activation is quantized and no bias is rounded: the optimiser stays.
    """
    model = load_graph(bundle.check(artifact))
    for recorded, values in ((artifact.inputs, model.graph.inputs), (artifact.outputs, model.graph.outputs)):
        found = [tensor_spec(value) for value in values if not value.is_initializer()]
        if [(each.name, each.dtype, each.shape) for each in recorded] != [
            (each.name, each.dtype, each.shape) for each in found
        ]:
            raise IntegrityError(
                f"the manifest's tensors of {artifact.path} are not the file's: {'; '.join(map(str, recorded))} against "
                f"{'; '.join(map(str, found))}",
                advice="restore the manifest, or export again into another folder",
            )
    if lacks := cpu_lacks(model):
        raise UsageError(
            f"{artifact.path} is {lacks.words}, which ONNX Runtime does not run on Triton",
            advice="serve an engine with --backend tensorrt, or export with --fp16",
        )
    narrow = narrow_types()
    both = any(node.op_type == "QuantizeLinear" for node in model.graph) and any(
        value.dtype in narrow for node in model.graph for value in node.outputs
    )
    if not both or backend == "python":  # which sets the option itself
        return None, ()
    return NO_OPTIMISER, (UNOPTIMISED,)

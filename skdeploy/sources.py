"""What an export starts from: a card with weights, an ONNX file made elsewhere, or a module of the user's own."""

from __future__ import annotations

import hashlib
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skdeploy.architecture import GraphSpec, ModuleSpec
from skdeploy.bundle.artifact import digest_file
from skdeploy.bundle.manifest import WeightsRecord
from skdeploy.checkpoints.load import find_weights, given_weights
from skdeploy.errors import UsageError, WeightsError
from skdeploy.export_packages import require_export
from skdeploy.options import ExportOptions, TraceOptions
from skdeploy.spec import Assumption, ModelSpec
from skdeploy.zoo.assumed import assumptions_of
from skdeploy.zoo.cardless import ASSUMED, spec_without_card
from skdeploy.zoo.cards import load_card

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn


@dataclass(frozen=True)
class CardSource:
    """A card, and the checkpoint that goes with it; None for random weights."""

    spec: ModelSpec
    record: WeightsRecord
    checkpoint: Path | None
    notes: tuple[str, ...]
    assumptions: tuple[Assumption, ...] = ()


@dataclass(frozen=True)
class GraphSource:
    """An ONNX file, as a graph with our names."""

    spec: ModelSpec
    record: WeightsRecord
    graph: ir.Model
    notes: tuple[str, ...]
    assumptions: tuple[Assumption, ...] = ()


@dataclass(frozen=True)
class ModuleSource:
    """A module with its weights in it."""

    spec: ModelSpec
    record: WeightsRecord
    module: nn.Module
    notes: tuple[str, ...]
    assumptions: tuple[Assumption, ...] = ()


def find_source(options: ExportOptions) -> CardSource | GraphSource | ModuleSource:
    """What ``options.model`` names: a path that ends in ``.onnx``, ``package.module:function``, or a card.

    Raises DependencyError without the packages that it takes from there to a graph.
    """
    foreign = options.model.endswith(".onnx")
    require_export(
        *(() if foreign else ("torch", "safetensors")), "onnxscript", *(("onnxsim",) if options.simplify else ())
    )
    if foreign:
        return _graph(options)
    if ":" in options.model and not options.model.endswith(".toml"):
        return _module(options)
    spec, card = load_card(options.model)
    record, checkpoint = find_weights(spec, card, options.weights, options.seed)
    notes = []
    if record.source == "random":
        notes.append(f"no weights given: random ones from seed {record.seed}, so the logits mean nothing")
    applied = options.applied(spec)
    return CardSource(applied, record, checkpoint, tuple(notes), assumptions_of(applied))


def _graph(options: ExportOptions) -> GraphSource:
    from skdeploy.graph.foreign import foreign_notes, read_foreign

    plain = TraceOptions()
    for name, given in {
        "--weights": options.weights is not None,
        "--seed": options.seed != 0,
        "--imgsz": options.image_size is not None,
        "--batch": options.trace.batch is not None,
        "--exporter": options.trace.exporter != plain.exporter,
        "--opset": options.trace.opset != plain.opset,
        "--dynamic-size": options.trace.dynamic_size,
        "--attention": options.trace.attention,
        "--embed-preprocess": options.trace.embed_preprocess,
    }.items():
        if given:
            raise UsageError(
                f"{name} does not go with an ONNX file, which is as it was exported", advice="export it anew"
            )
    path = Path(options.model)
    if not path.is_file():
        raise UsageError(f"no ONNX file at {path}", advice="give the path of one, or a card")
    graph = read_foreign(path)
    shape, logits = graph.graph.inputs[0].shape, graph.graph.outputs[0].shape
    assert shape is not None  # read_foreign checked both
    assert logits is not None
    channels, height, width = (size if isinstance(size, int) else None for size in shape[1:])
    classes = logits[1] if isinstance(logits[1], int) else None
    if channels not in (1, 3) or classes is None:
        raise UsageError(
            f"{path} takes {shape} and gives {logits}: skdeploy needs 1 or 3 channels and a known number of classes",
            advice="export it with fixed channels and classes",
        )
    size = (height, width) if height and width else None
    said = foreign_notes(graph)
    notes = [f"{path}: opset {said.opset}, input {said.input_name!r}, output {said.output_name!r}", ASSUMED]
    if said.softmax:
        notes.append(f"the graph ends in a softmax, {said.softmax}: its outputs are probabilities, not logits")
    if said.dropped_outputs:
        notes.append(f"outputs left out: {', '.join(said.dropped_outputs)}")
    return GraphSource(
        spec_without_card(path.stem, GraphSpec(classes=classes), channels, size),
        WeightsRecord(source="checkpoint", file=str(path), sha256=digest_file(path)),
        graph,
        tuple(notes),
    )


def _module(options: ExportOptions) -> ModuleSource:
    import torch

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(options.seed)
        module = _built(options.model)
    record = WeightsRecord(source="random", seed=options.seed)
    notes = [f"{options.model} is your own code: it ran here, and `skdeploy verify` will not run it", ASSUMED]
    if options.weights is not None:
        from skdeploy.checkpoints.read import read_checkpoint

        record, path = given_weights(options.weights)
        checkpoint = read_checkpoint(path)
        prefix = _own_prefix(checkpoint.peeled, list(module.state_dict()))
        try:
            module.load_state_dict({prefix + key: tensor for key, tensor in checkpoint.tensors.items()})
        except RuntimeError as error:
            raise WeightsError(
                f"{path} does not fit {options.model}: {str(error).splitlines()[-1].strip()}",
                advice="its keys must be those of the module",
            ) from error
    else:
        notes.append(f"no weights given: the module's own, as it builds them with torch's seed {options.seed}")
    module = module.float().eval().requires_grad_(False)
    _require_finite(module, record.file or options.model)
    size = options.image_size or (224, 224)
    first = next((layer for layer in module.modules() if isinstance(layer, torch.nn.Conv2d)), None)
    if first is None:
        raise UsageError(f"{options.model} has no convolution", advice="it must be an image classifier")
    channels = first.in_channels
    logits = _run_once(module, channels, size, options.model)
    spec = spec_without_card(
        options.model.rpartition(":")[0].rpartition(".")[2] + "-" + options.model.rpartition(":")[2],
        ModuleSpec(factory=options.model, classes=logits),
        channels,
        size,
    )
    return ModuleSource(spec, _digested(record, module), module, tuple(notes))


def _require_finite(module: nn.Module, shown: str) -> None:
    """Raises WeightsError for NaN, and for an infinite parameter: a buffer may be a mask of infinities."""
    parameters = [(name, tensor, tensor.isfinite()) for name, tensor in module.named_parameters()]
    buffers = [(name, tensor, ~tensor.isnan()) for name, tensor in module.named_buffers()]
    for name, tensor, good in (*parameters, *buffers):
        if not bool(good.all()):
            raise WeightsError(
                f"{shown}: {int((~good).sum()):,} of the {tensor.numel():,} values of {name} are NaN or infinite",
                advice="the training diverged, or the file is damaged: give a checkpoint from before",
            )


def _own_prefix(peeled: tuple[str, ...], keys: list[str]) -> str:
    """What was peeled off a checkpoint's keys and is the module's own: a module that holds another as ``model``, say."""
    prefixes = [name for name in peeled if name.endswith(".")]
    candidates = ["".join(prefixes[first:]) for first in range(len(prefixes) + 1)]
    return next(prefix for prefix in candidates if all(key.startswith(prefix) for key in keys))


def _built(factory: str) -> nn.Module:
    from torch import nn

    name, _, attribute = factory.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does: the user's package is where the user is
    try:
        module: Any = importlib.import_module(name)
        build = getattr(module, attribute)
        built = build()
    except Exception as error:  # the user's own code can raise anything, and the traceback is theirs to read
        raise UsageError(
            f"{factory} did not build a network: {type(error).__name__}: {error}",
            advice="it must be importable from here, and callable without arguments",
        ) from error
    if not isinstance(built, nn.Module):
        raise UsageError(f"{factory} returned a {type(built).__name__}, not a torch.nn.Module")
    return built


def _run_once(module: nn.Module, channels: int, size: tuple[int, int], factory: str) -> int:
    import torch

    if channels not in (1, 3):
        raise UsageError(f"{factory} takes {channels} channels", advice="images have 1 or 3")
    try:
        with torch.inference_mode():
            logits = module(torch.zeros(2, channels, *size))
    except Exception as error:  # the user's own code
        raise UsageError(
            f"{factory} does not run on 2 images of {channels} x {size[0]} x {size[1]}: {type(error).__name__}: {error}",
            advice="give its size with --imgsz",
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or logits.shape[0] != 2:
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UsageError(f"{factory} gives {shape} for 2 images, not (2, classes)")
    return int(logits.shape[1])


def _digested(record: WeightsRecord, module: nn.Module) -> WeightsRecord:
    """The digest of the weights that the module has, wherever they came from."""
    if record.source == "checkpoint":
        return record
    digest = hashlib.sha256()
    for key, tensor in module.state_dict().items():
        digest.update(key.encode() + tensor.cpu().numpy().tobytes())
    return record.model_copy(update={"sha256": digest.hexdigest()})

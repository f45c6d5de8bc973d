"""Sources of an export: a card with weights, an ONNX file made elsewhere, or the user's own module."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from skdeploy.checkpoints.convert import card_of, inferred
from skdeploy.checkpoints.hub import endpoint_warnings, is_hub_url
from skdeploy.checkpoints.load import find_weights, given_weights
from skdeploy.checkpoints.own_module import (
    Shown,
    build_module,
    digested,
    gives_logits,
    load_checkpoint,
    outputs_of,
    ready,
    require_batch,
    require_finite,
    tried,
)
from skdeploy.checkpoints.weights_record import WeightsRecord
from skdeploy.core.architecture import MAX_COUNT, DescribedSpec, GraphSpec, ModuleSpec
from skdeploy.core.errors import CardError, UsageError
from skdeploy.core.files import digest_file, read_file
from skdeploy.core.options import flags_given
from skdeploy.core.packages import require_export
from skdeploy.core.spec import MAX_PIXELS, Assumption, ModelSpec, TensorSpec
from skdeploy.line.array_inputs import FoundArrays, described_arrays, inputs_of, module_of_arrays
from skdeploy.line.asked_task import Asked
from skdeploy.line.options import ExportOptions
from skdeploy.line.written import tensor_spec
from skdeploy.parity.tasks import IMAGE_TO_IMAGE, check_task_name, task_of
from skdeploy.passes.trace_options import TraceOptions
from skdeploy.zoo.assumed import assumptions_of, confirmed
from skdeploy.zoo.cardless import DEFAULT_SIZE, spec_without_card
from skdeploy.zoo.cards import load_card, load_interface_card

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

    from skdeploy.checkpoints.importing import Imported

# What training scripts and hubs call them; none of these is a card, a graph or a module.
MAX_LABELS_BYTES: Final = 16 << 20  # a name a line, a million of them
CHECKPOINTS: Final = (
    ".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".pth.tar", ".pkl", ".npz", ".caffemodel", ".model", ".weights",
)  # fmt: skip


@dataclass(frozen=True)
class CardSource:
    """A card, and the checkpoint that goes with it; None for random weights."""

    spec: ModelSpec
    record: WeightsRecord
    checkpoint: Path | None
    notes: tuple[str, ...]
    assumptions: tuple[Assumption, ...] = ()
    imported: Imported | None = None  # of a checkpoint without a card: what was inferred, with the weights


@dataclass(frozen=True)
class GraphSource:
    """An ONNX file, as a graph with our names."""

    spec: ModelSpec
    record: WeightsRecord
    graph: ir.Model
    notes: tuple[str, ...]
    assumptions: tuple[Assumption, ...] = ()

    @property
    def is_trained_int8(self) -> bool:
        """Whether it carries Q/DQ of its own."""
        from skdeploy.ir.qdq import qdq_nodes

        return any(qdq_nodes(self.graph))


@dataclass(frozen=True)
class ModuleSource:
    """A module with its weights in it."""

    spec: ModelSpec
    record: WeightsRecord
    module: nn.Module
    notes: tuple[str, ...]
    assumptions: tuple[Assumption, ...] = ()


def find_source(options: ExportOptions) -> CardSource | GraphSource | ModuleSource:
    """Open what ``options.model`` names: an .onnx file, a checkpoint, ``package.module:function``, or a card.

    Raises DependencyError without the packages that it takes from there to a graph, CardError for a task that is not known.
    """
    check_task_name(options.task)
    options.check_source()  # not every verb checks all of them
    source = _source(options)
    warnings = (*endpoint_warnings(options.model), *endpoint_warnings(options.weights or ""))
    source = replace(source, notes=(*warnings, *source.notes)) if warnings else source
    if isinstance(source, CardSource) and options.task is not None:
        source = replace(source, spec=source.spec.model_copy(update={"task": options.task}))
    if reason := task_of(source.spec).refusal(source.spec):
        raise UsageError(f"{options.model}: the task {source.spec.task} {reason}", advice="choose another with --task")
    if isinstance(source, CardSource) and source.imported is None:
        return source  # how many classes its weights have is not known yet
    return replace(source, spec=labelled(source.spec, options))


def is_checkpoint(model: str) -> bool:
    """Whether a name is a checkpoint's: by its ending, or an ``hf://`` URL."""
    return is_hub_url(model) or model.lower().endswith(CHECKPOINTS)


def _source(options: ExportOptions) -> CardSource | GraphSource | ModuleSource:
    foreign = options.model.endswith(".onnx")
    if not foreign and (given := next(flags_given(options.read), None)):
        raise UsageError(f"{given} is for an .onnx file", advice="leave it out, or change the network itself")
    require_export(
        *(() if foreign else ("torch", "safetensors")), "onnxscript", *(("onnxsim",) if options.simplify else ())
    )
    if foreign:
        return _graph(options)
    if is_checkpoint(options.model):
        return _checkpoint(options)
    if ":" in options.model and not options.model.endswith(".toml"):
        return _module(options)
    if options.card is not None:
        raise UsageError(
            f"--card does not go with {options.model}, which is a card itself", advice="give one of the two as MODEL"
        )
    return _card(options)


def _card(options: ExportOptions) -> CardSource:
    spec, card = load_card(options.model)
    record, checkpoint = find_weights(spec, card, options.weights, options.seed)
    notes = []
    if record.source == "random":
        notes.append(f"no weights given: random ones from seed {record.seed}, so the logits mean nothing")
    applied = confirmed(options.applied(spec), options.assume_imagenet, options.model)
    notes += _confirmation(options)
    return CardSource(applied, record, checkpoint, tuple(notes), assumptions_of(applied))


def _checkpoint(options: ExportOptions) -> CardSource:
    """The network that the checkpoint's own weights tell, or with ``--card`` that of a card."""
    if options.weights is not None:
        raise UsageError(
            f"{options.model} is a checkpoint itself, and --weights another", advice="give one of the two, or a card"
        )
    if options.card is not None:
        return _card(replace(options, model=options.card, card=None, weights=options.model))
    require_export("tomli_w")
    record, path = given_weights(options.model)
    imported, base = inferred(path)
    spec = card_of(imported, base, options.model, Path(record.file or path).name.split(".")[0])
    imported = replace(imported, spec=spec)
    applied = confirmed(options.applied(spec), options.assume_imagenet, options.model)
    network = applied.architecture
    made = f", the card {base}'s but for its own classes" if base else ""
    note = f"no card: the weights show a {network.family} with {network.classes} classes{made}"
    return CardSource(
        applied, record, path, (note, *_confirmation(options)), assumptions_of(applied), replace(imported, spec=applied)
    )


def labelled(spec: ModelSpec, options: ExportOptions) -> ModelSpec:
    """With the names of ``--labels``, once there are as many as ``--classes`` and the network say. Raises UsageError."""
    if options.classes is not None and options.classes != spec.network.classes:
        raise UsageError(
            f"--classes {options.classes}: {options.model} has {spec.network.classes}",
            advice="give the checkpoint of that task, or leave --classes out",
        )
    if options.labels is None:
        return spec
    try:
        lines = read_file(options.labels, MAX_LABELS_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(
            f"cannot read --labels {options.labels}: {why}", advice="a text file, one name a line"
        ) from error
    labels = tuple(line.strip() for line in lines if line.strip())
    if len(labels) != spec.network.classes:
        raise UsageError(
            f"--labels {options.labels} has {len(labels)} names, and the network {spec.network.classes} classes",
            advice="one name a line, in the order of the logits",
        )
    return spec.model_copy(update={"labels": labels})


def _graph(options: ExportOptions) -> GraphSource:
    from skdeploy.passes.foreign import foreign_notes, read_foreign

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
                f"{name} does not go with an ONNX file, which is as it was exported",
                advice="leave it out, or make the ONNX file as you need it",
            )
    path = Path(options.model)
    if not path.is_file():
        raise UsageError(f"no ONNX file at {path}", advice="give the path of one, or a card")
    asked = Asked.of(options)
    card = None if options.card is None else load_interface_card(options.card)[0]
    graph = read_foreign(path, has_classes=asked.has_classes, options=options.read, card=card, classes=asked.classes)
    said, outputs = foreign_notes(graph), tuple(map(tensor_spec, graph.graph.outputs))
    found = said.classes
    classes = 0 if found is None else found.classes
    _require_bounds(options.model, classes, ())
    shapes = said.example[1]
    shown = [one.model_copy(update={"shape": shape}) for one, shape in zip(outputs, shapes, strict=True)]
    task, notes = asked.task_of(said.example[0], [] if found else shown, normalised=said.is_normalised)
    if found is not None:
        notes = asked.said(found, outputs, picked=said.picked)
        notes = notes or asked.doubt(classes, labels=options.labels is not None, softmax=bool(said.softmax))
    network, outputs = GraphSpec(classes=classes), () if said.has_logits else outputs
    of_classes = found.name if found is not None and len(outputs) > 1 else ""
    if said.is_image:
        shape = tensor_spec(graph.graph.inputs[0]).shape
        channels, height, width = (size if isinstance(size, int) else None for size in shape[1:])
        assert channels is not None  # take_inputs has seen it
        _require_bounds(options.model, classes, (height, width))
        spec = _described(options, path.stem, Found(network, channels, (height, width), task, outputs, of_classes))
    else:
        inputs, sizes = inputs_of(graph)
        arrays = FoundArrays(network, inputs, sizes, task, outputs, of_classes)
        spec, assumed = described_arrays(options, path.stem, arrays)
        notes += assumed
    notes += [*said.in_words(path), *_confirmation(options)]
    return GraphSource(
        spec,
        WeightsRecord(source="checkpoint", file=str(path), sha256=digest_file(path), data=said.data),
        graph,
        tuple(notes),
        assumptions_of(spec),
    )


def _confirmation(options: ExportOptions) -> tuple[str, ...]:
    """For the manifest: who said that the preprocessing is right."""
    return ("--assume-imagenet: the user confirmed ImageNet's preprocessing",) if options.assume_imagenet else ()


def _require_bounds(shown: str, classes: int, size: tuple[int | None, ...]) -> None:
    """Raises UsageError for what no card may say."""
    for what, value, most in (
        ("classes", classes or 1, MAX_COUNT),
        *(("pixels a side", side or 1, MAX_PIXELS) for side in size),
    ):
        if not 1 <= value <= most:
            raise UsageError(
                f"{shown} has {value:,} {what}; skdeploy takes 1 to {most:,}",
                advice="look at its input and output: an image classifier is expected",
            )


@dataclass(frozen=True)
class Found:
    """The interface that a network shows. ``size``: (height, width) where it fixes them. ``outputs``: empty for logits.

    ``class_output``: which of several outputs tells the class.
    """

    network: GraphSpec | ModuleSpec
    channels: int
    size: tuple[int | None, int | None]
    task: str
    outputs: tuple[TensorSpec, ...]
    class_output: str


def _described(options: ExportOptions, name: str, found: Found) -> ModelSpec:
    """The spec that ``--card`` gives, once it agrees with the network itself; without one, ImageNet's preprocessing.

    Raises CardError for what contradicts the network.
    """
    (height, width), network, channels = found.size, found.network, found.channels
    if options.card is None:
        fixed = (height, width) if height and width else None
        images = found.task == IMAGE_TO_IMAGE
        spec = spec_without_card(name, network, channels, fixed, found.task, found.outputs, gives_images=images)
        spec = spec.model_copy(update={"class_output": found.class_output})
        return confirmed(spec, options.assume_imagenet, options.model)
    card, path = load_interface_card(options.card)
    if not isinstance(card.network, DescribedSpec) and card.network.family != network.family:
        raise CardError(
            f"the card {path} says family {card.network.family!r}, but {options.model} has family {network.family!r}",
            advice="correct network.family in the card",
        )
    pairs: dict[str, tuple[object, object]] = {
        "network.classes": (card.network.classes, network.classes),
        "outputs": ([one.name for one in card.outputs or found.outputs], [one.name for one in found.outputs]),
        "input.channels": (card.input.channels, channels),
        "input.height": (card.input.height, height or card.input.height),
        "input.width": (card.input.width, width or card.input.width),
    }
    if isinstance(card.network, ModuleSpec) and isinstance(network, ModuleSpec):
        pairs["network.factory"] = (card.network.factory or network.factory, network.factory)
    wrong = [
        f"  {key}: the card says {said}, the network has {found}"
        for key, (said, found) in pairs.items()
        if said != found
    ]
    if wrong:
        raise CardError(
            f"the card {path} does not fit {options.model}:\n" + "\n".join(wrong),
            advice="correct the card, or give the network it was written for",
        )
    # The file or module has its own weights, so those of a card of the zoo are not used.
    spec = card.model_copy(
        update={
            "network": network.model_copy(update={"total_stride": card.network.total_stride}),
            "weights": None,
            "outputs": found.outputs,
            "class_output": found.class_output,
        }
    )
    return confirmed(spec, options.assume_imagenet, options.model)


def _module(options: ExportOptions) -> ModuleSource:
    import torch

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(options.seed)
        module = build_module(options.model)
    record = WeightsRecord(source="random", seed=options.seed)
    notes = [
        f"{options.model} is your own code: it ran here, and `skdeploy verify` will not run it",
        *_confirmation(options),
    ]
    if options.weights is not None:
        record, path = given_weights(options.weights)
        load_checkpoint(module, path, options.model)
    else:
        notes.append(f"no weights given: the module's own, as it builds them with torch's seed {options.seed}")
    module = ready(module)
    require_finite(module, record.file or options.model)
    card = None if options.card is None else load_interface_card(options.card)[0]
    if card is not None and not card.takes_images:
        spec, said = module_of_arrays(options, module, card)
        return ModuleSource(spec, digested(record, module), module, (*notes, *said), assumptions_of(spec))
    asked = None if card is None else options.applied(card).input
    size = (asked.height, asked.width) if asked else options.image_size or (DEFAULT_SIZE, DEFAULT_SIZE)
    _require_bounds("--imgsz", 1, size)
    channels, shapes = tried(module, (asked.channels,) if asked else (3, 1), size, options.model)
    if asked is None and len(shapes) > 1:
        notes.append(
            f"{options.model} runs on images of 3 channels and of 1: 3 are taken, a card (--card) decides otherwise"
        )
    wanted, given = Asked.of(options), shapes[channels]
    require_batch(given, options.model)
    told = wanted.of_outputs(given, options.model)
    classes, alone = (0 if told is None else told.classes), told is not None and gives_logits(given)
    _require_bounds(options.model, classes, size)
    outputs = () if alone else _outputs_of(module, options, channels, size, given)
    task, said = wanted.task_of((2, channels, *size), [] if told else list(given.values()))
    found = Found(
        ModuleSpec(factory=options.model, classes=classes),
        channels,
        options.image_size if asked is None and options.image_size else (None, None),
        task,
        outputs,
        told.name if told is not None and len(outputs) > 1 else "",
    )
    name = options.model.rpartition(":")[0].rpartition(".")[2] + "-" + options.model.rpartition(":")[2]
    spec = _described(options, name, found)
    if told is not None:
        said = wanted.said(told, outputs) or wanted.doubt(classes, labels=options.labels is not None)
    notes += said
    spec = options.applied(spec)
    return ModuleSource(spec, digested(record, module), module, tuple(notes), assumptions_of(spec))


def _outputs_of(
    module: nn.Module, options: ExportOptions, channels: int, size: tuple[int, int], given: Shown
) -> tuple[TensorSpec, ...]:
    """The outputs of a module. With ``--dynamic-size``, those of images twice as large show which of their sizes are free."""
    other = given
    if options.trace.dynamic_size:
        other = tried(module, (channels,), (2 * size[0], 2 * size[1]), options.model)[1][channels]
    return outputs_of(given, other)

"""The spec of an ONNX file or a module whose inputs are not one image: what it shows itself, and what its card says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from skdeploy.checkpoints.own_module import Shown, gives_logits, outputs_of, require_batch, tried_arrays
from skdeploy.core.architecture import GraphSpec, ModuleSpec
from skdeploy.core.errors import CardError, UsageError
from skdeploy.core.interface import ArrayInput, Dtype, DynamicSize
from skdeploy.core.spec import ModelSpec, Precision, TensorSpec
from skdeploy.line.asked_task import Asked
from skdeploy.line.options import ExportOptions
from skdeploy.line.written import tensor_spec
from skdeploy.zoo.cardless import spec_of_arrays
from skdeploy.zoo.cards import load_interface_card

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

STEP: Final = 8  # most networks halve their input up to three times
USUAL: Final = 64  # of a free dimension, where no card says it: a multiple of what most networks halve


@dataclass(frozen=True)
class FoundArrays:
    """The interface that a network shows. ``outputs``: empty for logits."""

    network: GraphSpec | ModuleSpec
    inputs: tuple[ArrayInput, ...]
    sizes: dict[str, DynamicSize]
    task: str
    outputs: tuple[TensorSpec, ...]
    class_output: str


def inputs_of(graph: ir.Model) -> tuple[tuple[ArrayInput, ...], dict[str, DynamicSize]]:
    """The inputs of a graph that was read, and the usual sizes that its free dimensions are given."""
    shown = [tensor_spec(value) for value in graph.graph.inputs]
    inputs = tuple(ArrayInput(name=one.name, dtype=cast("Dtype", one.dtype), shape=one.shape[1:]) for one in shown)
    free = sorted({size for one in inputs for size in one.shape if isinstance(size, str)})
    return inputs, {name: DynamicSize(usual=USUAL) for name in free}


def described_arrays(options: ExportOptions, name: str, found: FoundArrays) -> tuple[ModelSpec, list[str]]:
    """The spec, and notes on what no card says. Raises CardError for a card that contradicts the network."""
    if options.assume_imagenet or options.image_size is not None:
        option = "--assume-imagenet" if options.assume_imagenet else "--imgsz"
        shown = "; ".join(map(str, found.inputs))
        raise UsageError(
            f"{option} is for networks that take images; {options.model} takes {shown}",
            advice="leave it out; [[inputs]] and [sizes] of a card (--card) describe other inputs",
        )
    if options.card is None:
        given = _sizes_of_samples(options, found) if found.sizes else {}
        sizes = {axis: DynamicSize(usual=given.get(axis, size.usual)) for axis, size in found.sizes.items()}
        spec = spec_of_arrays(name, found.network, found.inputs, sizes, found.task, found.outputs)
        spec = spec.model_copy(update={"class_output": found.class_output})
        free = "".join(
            f"; {axis} {size.usual} {'fits the smallest sample' if axis in given else 'is assumed'}"
            for axis, size in sizes.items()
        )
        return spec, [f"inputs: {spec.shown_inputs}{free}; `skdeploy init` writes a card to correct"]
    card, path = load_interface_card(options.card)
    pairs: dict[str, tuple[object, object]] = {
        "network.family": (card.network.family, found.network.family),
        "network.classes": (card.network.classes, found.network.classes),
        "outputs": ([one.name for one in card.outputs or found.outputs], [one.name for one in found.outputs]),
    }
    if isinstance(card.network, ModuleSpec) and isinstance(found.network, ModuleSpec):
        pairs["network.factory"] = (card.network.factory or found.network.factory, found.network.factory)
    wrong = [
        f"  {key}: the card says {said}, the network has {own}" for key, (said, own) in pairs.items() if said != own
    ]
    if wrong:
        raise CardError(
            f"the card {path} does not fit {options.model}:\n" + "\n".join(wrong),
            advice="correct the card, or give the network it was written for",
        )
    own = {"network": found.network, "outputs": found.outputs, "class_output": found.class_output}
    return card.model_copy(update=own), []


def _sizes_of_samples(options: ExportOptions, found: FoundArrays) -> dict[str, int]:
    """The free sizes of the smallest sample that the export is given, a multiple of 8 where they are larger than that."""
    from skdeploy.images.samples import smallest_sizes

    calibration = getattr(options.lowering.get(Precision.INT8), "calibration", None)
    for source in (options.images, getattr(calibration, "images", None), options.accuracy.data):
        if source is not None and (sizes := smallest_sizes(source, found.inputs)):
            return {axis: max(1, size // STEP * STEP or size) for axis, size in sizes.items()}
    return {}


def module_of_arrays(options: ExportOptions, module: nn.Module, card: ModelSpec) -> tuple[ModelSpec, list[str]]:
    """The spec of a module whose card has ``[[inputs]]``, once it has run on them, and notes. Raises UsageError, CardError."""
    wanted, given = Asked.of(options), tried_arrays(module, card, options.model)
    require_batch(given, options.model)
    told = wanted.of_outputs(given, options.model)
    outputs = () if told and gives_logits(given) else _outputs(module, card, options.model, given)
    (first, *others) = card.inputs
    fed = () if others else (2, *card.usual_shape(first.shape))
    task, notes = wanted.task_of(fed, [] if told else list(given.values()))
    network = ModuleSpec(factory=options.model, classes=0 if told is None else told.classes)
    name = told.name if told is not None and len(outputs) > 1 else ""
    spec, assumed = described_arrays(
        options, card.name, FoundArrays(network, card.inputs, dict(card.sizes), task, outputs, name)
    )
    return spec, [*notes, *([] if told is None else wanted.said(told, outputs)), *assumed]


def _outputs(module: nn.Module, card: ModelSpec, factory: str, given: Shown) -> tuple[TensorSpec, ...]:
    """The outputs; those of larger inputs show which of their sizes are free."""
    larger = {name: size.usual + size.multiple for name, size in card.sizes.items()}
    other = tried_arrays(module, card.with_usual(larger), factory) if larger else given
    return outputs_of(given, other)

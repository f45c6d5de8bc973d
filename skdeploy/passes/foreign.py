"""ONNX files made elsewhere, brought to the interface and the names that the rest of the line expects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
import onnx_ir as ir
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from skdeploy.backends.culprit import told
from skdeploy.core.errors import ExportError, UsageError
from skdeploy.core.files import digest_file
from skdeploy.core.spec import IMAGE, LOGITS, ModelSpec, TensorSpec
from skdeploy.ir import large
from skdeploy.ir.constants import drop_unused, free_name
from skdeploy.ir.identities import DropIdentities
from skdeploy.ir.naming import NameByModule
from skdeploy.ir.onnx_file import foreign_operator, graph_of, inferred, inside, read_proto
from skdeploy.ir.qdq import DEQUANTIZE, QUANTIZE, qdq_nodes
from skdeploy.ir.weights_of_files import require_finite, require_no_integer_kernels
from skdeploy.passes.baked_batch import baking_node
from skdeploy.passes.class_numbers import class_numbers
from skdeploy.passes.embeddings import is_normalised
from skdeploy.passes.fold_shapes import folded
from skdeploy.passes.foreign_inputs import take_inputs
from skdeploy.passes.interface import with_asked_interface
from skdeploy.passes.keep_batch import KeepBatch, squeezing_node
from skdeploy.passes.opsets import require_known_opset, with_known_opset
from skdeploy.passes.read_options import ReadOptions
from skdeploy.passes.same_function import EXAMPLE_BATCH, EXAMPLE_SIZE, MAX_REL_CHANGE, require_same_function
from skdeploy.passes.trace_options import MAX_OPSET
from skdeploy.passes.trained import SymmetricQDQ, check_known
from skdeploy.passes.wide_squeezes import drop_wide_axes
from skdeploy.passes.widen import widen
from skdeploy.passes.zero_points import ONE_STEP, centred_note
from skdeploy.zoo.class_output import Asked, ClassOutput, class_output

OUTPUT: Final = LOGITS
# Of outputs: TensorRT-RTX takes and gives each of them.
INTEGERS: Final = (TensorProto.INT64, TensorProto.INT32, TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL)
TAKEN: Final = "float32, integers of 8, 32 or 64 bits, and booleans"
NOTES: Final = "foreign"


@dataclass(frozen=True)
class ForeignNotes:
    """The model that was read, and the changes. ``softmax`` is the node that makes ``logits`` probabilities, or empty.

    ``kept_batch``: the Squeezes that would have taken a batch of one away.
    ``has_logits``: the only output is a classifier's, named ``logits`` now; else outputs have their own names.
    ``classes``: the output of a classifier that tells the class, and how many there are; None for any other network.
    ``picked``: that output has class numbers, whose number the graph shows.
    ``interface``: notes on its changes and on dropped axes, ready to show.
    ``data``: the digests of files beside it with weights.
    ``narrow``: the type of fewer bits that the file is in, empty for FP32.
    ``is_normalised``: the first output has length 1, as embeddings have, and nobody said what the network is for.
    ``example``: the shape of an input that was tried, and of the outputs for it.
    """

    input_name: str
    output_name: str
    is_image: bool
    has_logits: bool
    classes: ClassOutput | None
    picked: bool
    dropped_outputs: tuple[str, ...]
    opset: int
    softmax: str
    example: tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]
    kept_batch: tuple[str, ...]
    interface: tuple[str, ...]
    data: dict[str, str]
    narrow: str
    is_normalised: bool

    def in_words(self, path: Path) -> Iterator[str]:
        """Notes for the user."""
        yield f"{path}: opset {self.opset}, input {self.input_name!r}, output {self.output_name!r}"
        if self.narrow:
            yield f"{path} is in {self.narrow}: read as FP32, which holds its numbers exactly; parity is judged against that"
        yield from self.interface
        if self.softmax:
            yield f"the graph ends in a softmax, {self.softmax}: its outputs are probabilities, not logits"
        for node in self.kept_batch:
            yield f"the node {node} (Squeeze) took a batch of one away too; now it keeps the batch"
        if self.dropped_outputs:
            yield f"outputs left out: {', '.join(self.dropped_outputs)}"


def read_foreign(
    path: Path,
    *,
    has_classes: bool | None = None,
    options: ReadOptions | None = None,
    card: ModelSpec | None = None,
    classes: int | None = None,
) -> ir.Model:
    """An ONNX file as a graph with the input ``input``, float32 (N, C, H, W), or with any other inputs under their own names.

    ``has_classes``: the network is a classifier, of ``classes`` if they are known; None: its outputs decide
    (``zoo/class_output.py``), and that the first is not an embedding (``embeddings.py``). The only output of a classifier,
    (N, classes), becomes ``logits``. All other outputs are kept under their own names.

    External data is taken from files in the folder of ``path`` only, and inlined unless it is too large (``ir/large.py``).
    Functions are inlined and constants folded. Any opset from 7 on becomes 19 or 20, if it can: see ``with_known_opset``. FP16
    and BF16 become FP32: see ``widen``. Squeezes keep a batch of one: see ``KeepBatch``; those of torch lose axes that are
    not 1: see ``drop_wide_axes``. Nodes are named after their modules where the exporter recorded them. The result is compared
    with the original on random images. ``foreign_notes`` tells what was done; ``options`` change the interface first.

    Raises IntegrityError for a broken file, weights that are not finite, or external data that is missing or elsewhere;
    UsageError for inputs that skdeploy does not take and outputs that are not the asked ones; CardError for a ``card`` of other
    inputs; ExportError for operators that are not ONNX's, a graph that is too large or does not run, and Q/DQ that TensorRT
    does not take (``trained.py``); PassError if the function changed.
    """
    proto, files = read_proto(path)
    digests = {file.relative_to(path.resolve().parent).as_posix(): digest_file(file) for file in files}
    require_no_integer_kernels(proto, path)
    opset = _check_operators(proto, path)
    narrow = widen(proto, path)
    require_finite(proto, path)
    options = options or ReadOptions()
    dropped_axes = drop_wide_axes(proto, path)
    changes = with_asked_interface(proto, path, options, has_arrays=card is not None and not card.takes_images)
    is_image = take_inputs(proto, path, card)
    normalised = has_classes is None and is_normalised(proto)
    dropped = _check_outputs(proto, path)
    alone = has_classes is not False and not normalised and len(proto.graph.output) == 1 and _gives_vector(proto, path)
    model = graph_of(proto, path)
    check_known(model, path)  # by the names that the file has
    own_names = _name_interface(model.graph, is_image=is_image, has_logits=alone)
    _name_by_module(model)  # before the upgrade, which drops the metadata that has the modules' names
    before = large.portable(model)
    model = with_known_opset(model, path, opset)
    keep_batch = KeepBatch()
    model = folded(model, path, keep_batch)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    DropIdentities()(model)
    drop_unused(model.graph)
    _name_by_module(model)
    symmetric = SymmetricQDQ(path)
    if any(qdq_nodes(model)):
        symmetric(model)
    usual = {} if card is None else card.usual_sizes
    at_most = ONE_STEP if symmetric.centred else MAX_REL_CHANGE
    example = _check_function(before, model, path, opset, usual, at_most=at_most)
    asked = Asked(has_classes, "" if card is None else card.class_output, classes, len(options.names) > 1)
    picked, beside = class_numbers(model)
    found = class_output(
        _shown(model, example[1]), asked, str(path), picked_from=picked, scores_of=beside, normalised=normalised
    )
    model.metadata_props.clear()
    model.meta[NOTES] = ForeignNotes(
        *own_names,
        is_image,
        alone and found is not None,
        found,
        found is not None and found.name in picked,
        dropped,
        opset,
        _final_softmax(model, found),
        example,
        tuple(keep_batch.changed),
        (*dropped_axes, *changes, *centred_note(symmetric.centred)),
        digests,
        narrow,
        normalised,
    )
    return model


def foreign_notes(model: ir.Model) -> ForeignNotes:
    """The notes of ``read_foreign`` about the model that it returned."""
    notes = model.meta[NOTES]
    assert isinstance(notes, ForeignNotes)  # read_foreign put it there
    return notes


def _check_operators(proto: ModelProto, path: Path) -> int:
    opset = max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    require_known_opset(opset, path)
    for node in inside(proto, NodeProto):
        if node.domain == "com.microsoft" and node.op_type in (QUANTIZE, DEQUANTIZE):
            node.domain = ""  # the same function; theirs takes more types, which are refused in either
        if node.domain not in ("", "ai.onnx"):
            raise foreign_operator(node, path)
    del proto.opset_import[:]
    proto.opset_import.append(onnx.helper.make_opsetid("", opset))
    return opset


def _gives_vector(proto: ModelProto, path: Path) -> bool:
    """Whether the only output is floating point of rank 2, or of a rank that nothing says: it is taken for a classifier's."""
    outputs = proto.graph.output
    shown = outputs if outputs[0].type.tensor_type.HasField("shape") else inferred(proto, path).graph.output
    tensor = shown[0].type.tensor_type
    if tensor.elem_type in INTEGERS:
        return False
    return not tensor.HasField("shape") or len(tensor.shape.dim) == 2


def _check_outputs(proto: ModelProto, path: Path) -> tuple[str, ...]:
    """Leaves the outputs that are compared, and gives the names of those that are dropped."""
    outputs = proto.graph.output
    if not outputs:
        raise UsageError(f"{path} has no output", advice="export it again")
    kept = [value for value in outputs if _is_taken(value)]
    if not kept:
        makers = {name: told(node) for node in proto.graph.node for name in node.output}
        shown = ", ".join(
            f"{value.name} ({_type_name(value)}, by {makers.get(value.name, 'an input')})" for value in outputs
        )
        raise UsageError(
            f"{path}: skdeploy takes {TAKEN}, but the outputs are {shown}",
            advice="export it with a cast to one of these",
        )
    dropped = tuple(value.name for value in outputs if value not in kept)
    del outputs[:]
    outputs.extend(kept)
    return dropped


def _is_taken(value: ValueInfoProto) -> bool:
    """Also of an output whose type is not written: its producer's shows in the run."""
    if value.type.WhichOneof("value") not in (None, "tensor_type"):
        return False
    return value.type.tensor_type.elem_type in (TensorProto.UNDEFINED, TensorProto.FLOAT, *INTEGERS)


def _type_name(value: ValueInfoProto) -> str:
    return TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()


def _name_interface(graph: ir.Graph, *, is_image: bool, has_logits: bool) -> tuple[str, str]:
    """Renames the image, and an output of logits, and gives their own names. A value that has the new name makes room."""
    own = ", ".join(value.name or "" for value in graph.inputs), ", ".join(value.name or "" for value in graph.outputs)
    renamed = [*([(graph.inputs[0], IMAGE)] if is_image else []), *([(graph.outputs[0], OUTPUT)] if has_logits else [])]
    for value, name in renamed:
        for other in _values(graph):
            if other.name == name and other is not value:
                other.name = free_name(graph, f"{name}_inner")
        value.name = name
    return own


def _values(graph: ir.Graph) -> list[ir.Value]:
    """All of a graph and of those inside its nodes."""
    parts = (graph, *graph.subgraphs())
    made = [value for node in graph.all_nodes() for value in node.outputs]
    return [*(value for part in parts for value in (*part.inputs, *part.initializers.values())), *made]


def _name_by_module(model: ir.Model) -> None:
    """NameByModule, whose names all have a slash, and no others: so names that are made of them are free.

    Constants, which folding leaves the names of nodes, and whatever is in graphs inside nodes lose theirs.
    """
    kept = {*model.graph.inputs, *(value for node in model.graph for value in node.outputs)}
    for value in _values(model.graph):
        if value not in kept and value.name and "/" in value.name:
            value.name = free_name(model.graph, value.name.replace("/", "."))
    NameByModule()(model)


def _check_function(
    before: large.Portable, model: ir.Model, path: Path, opset: int, usual: Mapping[str, int], *, at_most: float
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """That nothing has changed, that it runs for a batch that the exporter was not shown, and that outputs are as they must
    be: anything with the batch first. Their shapes are written.

    Returns the shape of the input that was tried, nothing where there are several, and of the outputs for it.
    """
    for made in model.graph.outputs:
        integer = made.dtype is not None and not made.dtype.is_floating_point()
        if made.dtype is not None and integer and made.dtype.value not in INTEGERS:
            node = made.producer()
            operator = f", by node {node.name} ({node.op_type})" if node is not None else ""
            raise UsageError(
                f"{path}: the output {made.name} is {made.dtype.name}{operator}, but skdeploy takes {TAKEN}",
                advice="export it with a cast to one of these",
            )
    after = large.portable(model)
    step = f"folding the constants of {path}"
    if opset != (now := model.graph.opset_imports[""]):
        step = f"converting {path} from opset {opset} to {now}"
    try:
        found = require_same_function(
            before, after, step, f"export it again with opset {MAX_OPSET}", sizes=usual, at_most=at_most
        )
    except ExportError as error:
        free = any(not isinstance(each.shape[0], int) for each in model.graph.inputs if each.shape)
        baked = baking_node(after.proto) if free else None
        if baked is None:
            raise ExportError(f"{path}: {error.message}", advice=error.advice) from error
        raise ExportError(
            f"{path}: the input's batch is free, but {told(baked[0])} makes the shape {baked[1]} whatever it is: the batch of "
            f"the exporter's example is baked. {EXAMPLE_BATCH} images do not run: {error.message}",
            advice="write the batch as x.shape[0] or -1 there, and export the network with a dynamic batch; or with a fixed "
            "one, input and all",
        ) from error
    shape = model.graph.inputs[0].shape
    assert shape is not None  # take_inputs has seen it
    batch = shape[0]
    images = batch if isinstance(batch, int) else EXAMPLE_BATCH
    free = not all(isinstance(size, int) for each in model.graph.inputs for size in (each.shape or ())[1:])
    for made in model.graph.outputs:
        sizes = found[made.name or ""].shape
        shown = f"{path}: for {images} image{'s' if images > 1 else ''} the output {made.name} is {list(sizes)}"
        if sizes[:1] != (images,):
            squeeze = squeezing_node(model.graph) if images == 1 else None
            if squeeze is None:
                raise UsageError(
                    f"{shown}: its first axis is not the batch",
                    advice="keep the batch either dynamic or fixed in the whole graph; or leave the output out: --outputs "
                    "names those to keep",
                )
            raise UsageError(
                f"{shown}: the node {squeeze} (Squeeze) takes the batch of one away",
                advice="give --free-batch, which keeps it; or write x.flatten(1) for x.squeeze() in the network",
            )
        known = made.shape if made.shape is not None and len(made.shape) == len(sizes) else [None] * len(sizes)
        made.shape = ir.Shape(
            [batch, *(_size(made, axis, known[axis], sizes[axis], free) for axis in range(1, len(sizes)))]
        )
    known_sizes = [size if isinstance(size, int) else usual.get(str(size.value), EXAMPLE_SIZE) for size in shape[1:]]
    tried = () if len(model.graph.inputs) > 1 else (images, *known_sizes)
    return tried, tuple(found[made.name or ""].shape for made in model.graph.outputs)


def _size(made: ir.Value, axis: int, known: object, found: int, free: bool) -> int | str:
    """A size of an output: what was found, but a name where the sizes of images are free and nothing says that it is fixed."""
    if isinstance(known, int) or not free:
        return found
    said = known.value if isinstance(known, ir.SymbolicDim) else None
    return said or f"{made.name}_{axis}"


def _shown(model: ir.Model, shapes: Sequence[tuple[int, ...]]) -> list[TensorSpec]:
    """The outputs with the shapes that an example gave."""
    types = [made.dtype.numpy().name if made.dtype is not None else "float32" for made in model.graph.outputs]
    return [
        TensorSpec(name=made.name or "", dtype=dtype, shape=shape)
        for made, dtype, shape in zip(model.graph.outputs, types, shapes, strict=True)
    ]


def _final_softmax(model: ir.Model, found: ClassOutput | None) -> str:
    """The node of a softmax that makes the logits, or the first output of another network; empty if there is none."""
    outputs = {made.name: made for made in model.graph.outputs}
    node = (outputs[found.name] if found is not None else model.graph.outputs[0]).producer()
    return (node.name or "") if node is not None and node.op_type == "Softmax" else ""

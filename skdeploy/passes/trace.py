"""From a network to a graph: torch.onnx, by its torch.export-based exporter or by TorchScript."""

from __future__ import annotations

import gc
import io
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from skdeploy.core.architecture import DescribedSpec
from skdeploy.core.errors import ExportError, UsageError
from skdeploy.core.spec import ModelSpec
from skdeploy.ir.naming import NameByModule
from skdeploy.ir.onnx_file import MAX_VALUES
from skdeploy.passes.preprocess import EmbedPreprocess
from skdeploy.passes.programs import fold_sizes, spare_decompositions
from skdeploy.passes.trace_options import TraceOptions
from skdeploy.zoo.outputs import with_named_outputs

if TYPE_CHECKING:
    from torch import Tensor, nn


def trace(network: nn.Module, spec: ModelSpec, options: TraceOptions) -> ir.Model:
    """The graph of ``network``'s deploy form: the inputs and outputs of the spec; an image is ``input``, float32 (N, C, H, W).

    With ``attention``, each gated unit adds an output ``attention.<module>`` (N, M, C). With ``embed_preprocess``, the input
    is uint8 (N, H, W, C) instead. Raises ExportError, and UsageError for attention without gates.
    """
    from skdeploy.zoo.fold import fold

    folded = fold(network)
    gates = gate_names(folded) if options.attention else []
    if options.attention and spec.outputs:
        raise UsageError(
            f"--attention is for networks with classes, but {spec.name} has the task {spec.task!r}",
            advice="leave it out",
        )
    if options.attention and not gates:
        raise UsageError(f"--attention: no unit of {spec.name} has a gate", advice="leave it out")
    outputs = [wanted.name for wanted in spec.given]
    module = with_named_outputs(folded, spec) if spec.outputs else _with_attention(folded, gates)
    model = _export(module, spec, options, [*outputs, *map(attention_name, gates)])
    NameByModule()(model)
    for value, each in zip(model.graph.inputs, spec.taken, strict=True):
        if not spec.takes_images:  # a multiple is an expression to torch
            value.shape = ir.Shape([options.batch or "batch", *each.shape[1:]])
    if options.embed_preprocess:
        EmbedPreprocess(spec.preprocess)(model)
    model.graph.name = spec.name
    model.metadata_props.clear()
    return model


def gate_names(network: nn.Module) -> list[str]:
    """Names of the gates in a network, in the order that they run in."""
    return [name for name, module in network.named_modules() if name.endswith(".gate") and any(module.children())]


def attention_name(gate: str) -> str:
    """The output that carries the attention of one unit: ``stages.0.1.sk.gate`` -> ``attention.stages.0.1``."""
    return f"attention.{gate.removesuffix('.gate').removesuffix('.sk')}"


def _with_attention(network: nn.Module, gates: list[str]) -> nn.Module:
    from torch import nn

    from skdeploy.zoo.selective_kernel import attention

    class WithAttention(nn.Module):
        """``network``, and after its logits the attention of each gate."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.recorded: list[list[Tensor]] = []
            for gate in gates:
                network.get_submodule(gate).register_forward_hook(lambda *hooked: self.recorded.append(hooked[-1]))

        def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            self.recorded = []
            logits = self.network(*inputs)
            return (logits, *(attention(weights) for weights in self.recorded))

    return WithAttention()


def _export(network: nn.Module, spec: ModelSpec, options: TraceOptions, outputs: list[str]) -> ir.Model:
    import torch

    examples = example_inputs(spec, options.batch or 2)
    free = _free_dimensions(spec, options)
    named: dict[str, Any] = {"input_names": list(examples), "output_names": outputs, "opset_version": options.opset}
    with _quiet(), _uncollected():
        try:
            if options.exporter == "torchscript":
                return _export_torchscript(network, examples, free, named)
            names = {name for axes in free.values() for name in axes.values()}
            known = {name: _dimension(name, spec) for name in names}
            dims = tuple({axis: known[name] for axis, name in free[given].items()} for given in examples)
            exported: nn.Module | torch.export.ExportedProgram = network
            spared = False
            # What torch.export alone may refuse, torch.onnx exports in ways of its own: others' modules, and guarded sizes.
            if isinstance(spec.network, DescribedSpec) and not (options.dynamic_size or options.attention):
                exported = torch.export.export(network, tuple(examples.values()), dynamic_shapes=(dims,), strict=False)
                spared = spare_decompositions(exported)
            named |= {"dynamic_shapes": (dims,), "verbose": False, "optimize": not spared}
            program = torch.onnx.export(exported, tuple(examples.values()), dynamo=True, **named)
        except Exception as error:  # the exporters raise anything, torch's internals included
            raise ExportError(
                f"torch.onnx could not export {spec.name} with --exporter {options.exporter}: {_first_line(error)}",
                advice="try the other --exporter, or a fixed --batch; `skdeploy doctor` shows the versions",
            ) from error
    if program is None:
        raise ExportError(f"torch.onnx returned nothing for {spec.name}")
    if spared:
        fold_sizes(program.model)
    return program.model


def example_inputs(spec: ModelSpec, batch: int) -> dict[str, Tensor]:
    """Zeros of the usual sizes, by input. A batch of two at least lets the exporter not specialise it to 1.

    Raises UsageError for a batch that no tensor holds.
    """
    import torch

    shapes = {each.name: (batch, *spec.usual_shape(each.shape[1:])) for each in spec.taken}
    for name, shape in shapes.items():
        if math.prod(shape) > MAX_VALUES:
            raise UsageError(
                f"--batch {batch}: {name} would have {math.prod(shape):,} values; skdeploy runs at most {MAX_VALUES:,}",
                advice="give a smaller --batch, or leave it out",
            )
    return {each.name: torch.zeros(shapes[each.name], dtype=getattr(torch, each.dtype)) for each in spec.taken}


def _free_dimensions(spec: ModelSpec, options: TraceOptions) -> dict[str, dict[int, str]]:
    """The names of free dimensions by input and axis: the batch, and height and width or those of the card."""
    batch = {} if options.batch else {0: "batch"}
    if spec.takes_images:
        sizes = {2: "height", 3: "width"} if options.dynamic_size else {}
        return {each.name: batch | sizes for each in spec.taken}
    if options.dynamic_size:
        raise UsageError(
            f"--dynamic-size is for networks that take images; {spec.name} takes {spec.shown_inputs}",
            advice="leave it out; in a card's [[inputs]], a name in a shape is a free dimension",
        )
    return {
        each.name: batch | {axis: size for axis, size in enumerate(each.shape) if axis and isinstance(size, str)}
        for each in spec.taken
    }


def _dimension(name: str, spec: ModelSpec) -> Any:
    """torch's, of a multiple where the card says one."""
    import torch

    size = spec.sizes.get(name)
    if size is None or size.multiple == 1:
        return torch.export.Dim(name)
    return size.multiple * torch.export.Dim(f"{name}_{size.multiple}", min=1)


def _export_torchscript(
    network: nn.Module, examples: dict[str, Tensor], free: dict[str, dict[int, str]], named: dict[str, Any]
) -> ir.Model:
    import onnx
    import torch
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    has_batch = any(0 in axes for axes in free.values())
    axes = {**free, **{name: {0: "batch"} for name in named["output_names"] if has_batch}}
    buffer = io.BytesIO()
    # The ignore: torch's stub wants a path, as the newer exporter does; TorchScript's writes to a buffer too.
    torch.onnx.export(network, tuple(examples.values()), buffer, dynamo=False, dynamic_axes=axes, **named)  # type: ignore[arg-type]
    proto = onnx.load_from_string(buffer.getvalue())
    # TorchScript leaves most types and shapes to the reader, and writes constants as nodes.
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporters' remarks to their own developers; errors still come through as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Spares the garbage collector's rounds through all of torch while a trace makes its objects: a sixth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _first_line(error: BaseException) -> str:
    """Find the first error: the exporters wrap it in pages of advice to their own developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].rstrip()}"

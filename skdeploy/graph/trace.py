"""From a network to a graph: torch.onnx, by its torch.export-based exporter or by TorchScript."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

from skdeploy.errors import ExportError
from skdeploy.graph.naming import NameByModule
from skdeploy.graph.preprocess import EmbedPreprocess
from skdeploy.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class TraceOptions:
    """What the graph's interface is. ``batch`` None means dynamic; ``dynamic_size`` frees height and width too."""

    exporter: Literal["dynamo", "torchscript"] = "dynamo"
    opset: int = 19
    batch: int | None = None
    dynamic_size: bool = False
    attention: bool = False
    embed_preprocess: bool = False


def trace(network: nn.Module, spec: ModelSpec, options: TraceOptions) -> ir.Model:
    """The graph of ``network``'s deploy form: input float32 (N, C, H, W) named ``input``, output (N, classes) ``logits``.

    With ``attention``, each gated unit adds an output ``attention.<module>`` (N, M, C). With ``embed_preprocess``, the input
    is uint8 (N, H, W, C) instead. Raises ExportError.
    """
    from skdeploy.zoo.fold import fold

    folded = fold(network)
    gates = gate_names(folded) if options.attention else []
    wrapped = _with_attention(folded, gates)
    outputs = ["logits", *(attention_name(gate) for gate in gates)]
    model = _export(wrapped, spec, options, outputs)
    NameByModule()(model)
    if options.embed_preprocess:
        EmbedPreprocess(spec.preprocess)(model)
    model.graph.name = spec.name
    model.metadata_props.clear()
    return model


def save_model(model: ir.Model, path: Path) -> None:
    """Writes one self-contained ONNX file."""
    ir.save(model, path, format="protobuf")


def gate_names(network: nn.Module) -> list[str]:
    """Names of the gates in a network, in the order that they run in."""
    return [name for name, module in network.named_modules() if name.endswith(".gate") and any(module.children())]


def attention_name(gate: str) -> str:
    """The output that carries the attention of one unit: ``stages.0.1.sk.gate`` -> ``attention.stages.0.1``."""
    return f"attention.{gate.removesuffix('.sk.gate')}"


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
                network.get_submodule(gate).register_forward_hook(self._record)

        def _record(self, _module: nn.Module, _inputs: object, weights: list[Tensor]) -> None:
            self.recorded.append(weights)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            self.recorded = []
            logits = self.network(x)
            return (logits, *(attention(weights) for weights in self.recorded))

    return WithAttention()


def _export(network: nn.Module, spec: ModelSpec, options: TraceOptions, outputs: list[str]) -> ir.Model:
    import torch

    # Two images at least: an example of one would let the exporter specialise the batch to 1.
    example = torch.zeros(options.batch or 2, *spec.input.shape)
    free = {} if options.batch else {0: "batch"}
    free |= {2: "height", 3: "width"} if options.dynamic_size else {}
    with _quiet():
        try:
            if options.exporter == "torchscript":
                return _export_torchscript(network, example, options, outputs, free)
            dims = {axis: torch.export.Dim(name) for axis, name in free.items()}
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                input_names=["input"],
                output_names=outputs,
                dynamic_shapes=(dims,),
                opset_version=options.opset,
                verbose=False,
            )
        except Exception as error:  # the exporters raise anything, torch's internals included: all of it is a failed export
            raise ExportError(
                f"torch.onnx could not export {spec.name} with --exporter {options.exporter}: {_first_line(error)}",
                advice="try the other --exporter, or a fixed --batch; `skdeploy doctor` shows the versions",
            ) from error
    if program is None:
        raise ExportError(f"torch.onnx returned nothing for {spec.name}")
    return program.model


def _export_torchscript(
    network: nn.Module, example: Tensor, options: TraceOptions, outputs: list[str], free: dict[int, str]
) -> ir.Model:
    import io

    import onnx
    import torch

    buffer = io.BytesIO()
    axes: dict[str, dict[int, str]] = {"input": free, **{name: {0: "batch"} for name in outputs if 0 in free}}
    torch.onnx.export(
        network,
        (example,),
        buffer,
        dynamo=False,
        input_names=["input"],
        output_names=outputs,
        dynamic_axes=axes,
        opset_version=options.opset,
    )
    return ir.from_proto(onnx.load_from_string(buffer.getvalue()))


class _quiet:  # noqa: N801 - used as a function
    """Silences the exporters' remarks to their own developers; errors still come through as exceptions."""

    def __enter__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        self._logger = logging.getLogger("torch.onnx")
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *exception: Any) -> None:
        self._logger.setLevel(self._level)
        self._warnings.__exit__(*exception)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"

"""``config.pbtxt``: what Triton must know of a model, in protobuf's text format (Triton's ``model_config.proto``)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from skdeploy.core.errors import UsageError
from skdeploy.core.spec import TensorSpec
from skdeploy.core.version import __version__

MARK: Final = "# Written by `skdeploy triton`"
HEAD: Final = (
    f"{MARK}, skdeploy {__version__}. The digests under parameters are checked: write it anew, do not edit it.\n"
)
LABELS_FILE: Final = "labels.txt"
TYPES: Final = {
    "float32": "TYPE_FP32", "float16": "TYPE_FP16", "float64": "TYPE_FP64", "bfloat16": "TYPE_BF16", "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8", "int8": "TYPE_INT8", "int32": "TYPE_INT32", "int64": "TYPE_INT64", "bytes": "TYPE_STRING",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """An input or output of a served model. ``dims`` are without the batch where the model is batched; -1 is a free one.

    ``usual`` are the dims that a warm-up sends.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    usual: tuple[int, ...] = ()
    labels: bool = False

    @property
    def text(self) -> str:
        # Triton has no tensor without dimensions: one number a sample is sent as [1], and the model sees [].
        shape = "dims: [ 1 ] reshape: { shape: [ ] }" if not self.dims else f"dims: {_numbers(self.dims)}"
        labels = f" label_filename: {quoted(LABELS_FILE)}" if self.labels else ""
        return f"{{ name: {quoted(self.name)} data_type: {TYPES[self.dtype]} {shape}{labels} }}"

    @property
    def warm(self) -> str:
        dims = _numbers(self.usual or (1,))
        return f"inputs {{ key: {quoted(self.name)} value {{ data_type: {TYPES[self.dtype]} dims: {dims} zero_data: true }} }}"


@dataclass(frozen=True)
class ModelConfig:
    """One model. ``backend`` is Triton's name; ``max_batch`` 0 means that the batch is fixed, and part of the dims.

    ``steps`` are those of an ensemble, see ``Step``. ``graph_level`` is ONNX Runtime's in Triton's own numbers, 2 for none.
    """

    name: str
    backend: str
    max_batch: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, str]
    instances: int = 1
    on_cpu: bool = False
    warm_up: bool = True
    graph_level: int | None = None
    steps: Sequence[Step] = field(default=())

    @property
    def interface(self) -> str:
        """The lines that all versions of a model share: clients depend on them."""
        runs = 'platform: "ensemble"' if self.steps else f"backend: {quoted(self.backend)}"
        inputs = _listed("input", [each.text for each in self.inputs])
        return f"{runs}\n{inputs}{_listed('output', [each.text for each in self.outputs])}"

    @property
    def text(self) -> str:
        """The file. A batch that waits is made as large as it can be without waiting: no delay is set, and no queue policy."""
        parts = [HEAD, f"name: {quoted(self.name)}\n", self.interface, f"max_batch_size: {self.max_batch}\n"]
        parts.append("version_policy { latest { num_versions: 1 } }\n")
        if self.steps:
            parts.append(f"ensemble_scheduling {{\n{_listed('step', [step.text for step in self.steps], '  ')}}}\n")
        else:
            kind = " kind: KIND_CPU" if self.on_cpu else ""
            parts.append(f"instance_group [ {{ count: {self.instances}{kind} }} ]\n")
            parts.append("dynamic_batching { }\n" if self.max_batch else "")
        if self.graph_level is not None:
            parts.append(f"optimization {{ graph {{ level: {self.graph_level} }} }}\n")
        if self.warm_up and not self.steps:
            parts.append(_listed("model_warmup", [self._warm(size) for size in sorted({1, self.max_batch or 1})]))
        parts += [parameter(key, value) for key, value in self.parameters.items()]
        return "".join(parts)

    def _warm(self, batch: int) -> str:
        inputs = " ".join(each.warm for each in self.inputs)
        return f'{{ name: "batch of {batch}" batch_size: {batch} {inputs} }}'


@dataclass(frozen=True)
class Step:
    """One model of an ensemble: its tensors by name, and what they are called in the ensemble."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]

    @property
    def text(self) -> str:
        maps = [
            f"{which} {{ key: {quoted(own)} value: {quoted(outer)} }}"
            for which, tensors in (("input_map", self.inputs), ("output_map", self.outputs))
            for own, outer in tensors.items()
        ]
        return f"{{ model_name: {quoted(self.model)} model_version: -1 {' '.join(maps)} }}"


def tensor_of(spec: TensorSpec, usual: Mapping[str, int], *, batched: bool, labels: bool = False) -> Tensor:
    """A graph's tensor as Triton names it; ``usual`` are sizes of free dimensions. Raises UsageError for another type."""
    if spec.dtype not in TYPES:
        raise UsageError(f"{spec.name} is {spec.dtype}, which Triton does not serve", advice="serve another artifact")
    shape = spec.shape[1:] if batched else spec.shape
    sizes = tuple(size if isinstance(size, int) else -1 for size in shape)
    warm = tuple(usual.get(size, 1) if isinstance(size, str) else size for size in shape)
    return Tensor(spec.name, spec.dtype, sizes, warm, labels)


def parameter(key: str, value: str) -> str:
    """One line of ``parameters``, as ``read_parameters`` finds it again."""
    return f"parameters {{ key: {quoted(key)} value: {{ string_value: {quoted(value)} }} }}\n"


def read_parameters(text: str) -> dict[str, str]:
    """The parameters of a file that was written here. Raises ValueError for one that was changed since."""
    found = {}
    for line in text.splitlines():
        if line.startswith("parameters { key: "):
            key, end = json.JSONDecoder().raw_decode(line, len("parameters { key: "))
            value, _ = json.JSONDecoder().raw_decode(line, end + len(" value: { string_value: "))
            if not (isinstance(key, str) and isinstance(value, str)):
                raise ValueError(f"not a text: {line[:80]}")
            found[key] = value
    return found


def quoted(text: str) -> str:
    """A string of protobuf's text format: it takes JSON's escapes."""
    return json.dumps(text, ensure_ascii=False)


def _numbers(sizes: Sequence[int]) -> str:
    return f"[ {', '.join(map(str, sizes))} ]"


def _listed(name: str, blocks: Sequence[str], indent: str = "") -> str:
    return f"{indent}{name} [\n" + ",\n".join(f"{indent}  {block}" for block in blocks) + f"\n{indent}]\n"

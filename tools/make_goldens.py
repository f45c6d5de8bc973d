"""Writes ``tests/golden/layouts/*.npz``: what each original SKNet implementation computes, for the importers' tests.

A golden holds a tiny configuration of one implementation: its random weights under its own key names, one input, and the
outputs that its own code gives. The code itself is not part of skdeploy; it is read from a checkout at the commit that
``goldens.toml`` names:

    git clone https://github.com/OWNER/NAME DIR/OWNER+NAME && git -C DIR/OWNER+NAME checkout COMMIT
    pip install --no-deps --target DIR/timm timm==VERSION          # pytorchcv likewise

``make peers`` has what timm imports. Then, one golden or all of them:

    .venv-peers/bin/python tools/make_goldens.py developer0hye --source DIR/developer0hye+SKNet-PyTorch
    .venv-peers/bin/python tools/make_goldens.py --all DIR

Arrays of a golden: ``state/KEY`` for each key of the state dict as the original saves it; ``input``; ``output_float32`` and
``output_float64``, what forward gives; ``logits_float32`` and ``logits_float64``, what its last linear layer gives (the same,
unless forward ends in a softmax); ``metadata``, a JSON string that says what weights cannot.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import json
import sys
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "golden" / "layouts"
MAX_BYTES = 300_000

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Source:
    """An implementation at one commit or release; the fields are explained in goldens.toml."""

    url: str
    version: str
    licence: str
    files: Mapping[str, str]
    imports_from: str = ""


@dataclass(frozen=True)
class Golden:
    """A tiny configuration of an implementation; the fields are explained in goldens.toml."""

    source: str
    file: str
    construct: str
    classifier: str
    facts_from: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    forward: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (72, 56)
    block: int = 4
    prefix: str = ""
    under: str | None = None
    beside: tuple[str, ...] = ()


TABLE = tomllib.loads(Path(__file__).with_name("goldens.toml").read_text(encoding="utf-8"))
SOURCES = {name: Source(**source) for name, source in TABLE["sources"].items()}
GOLDENS = {name: Golden(**golden) for name, golden in TABLE["goldens"].items()}


class _Narrow(ast.NodeTransformer):
    """Replaces integer literals; remembers which it met."""

    def __init__(self, numbers: Mapping[int, int]) -> None:
        self.numbers = numbers
        self.met: set[int] = set()

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if type(node.value) is not int or node.value not in self.numbers:
            return node
        self.met.add(node.value)
        return ast.copy_location(ast.Constant(self.numbers[node.value]), node)


def load(root: Path, source: Source, file: str, numbers: Mapping[str, int]) -> types.ModuleType:
    """The original's module ``file`` under ``root``, with the integers in ``numbers`` replaced."""
    for name, blob in source.files.items():
        content = (root / name).read_bytes() if (root / name).is_file() else b""
        if hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != blob:
            raise SystemExit(
                f"{root / name} is not that of {source.url}, {source.version}: check it out, or update goldens.toml"
            )
    folder = root / source.imports_from
    dotted = ".".join((root / file).relative_to(folder).with_suffix("").parts)
    sys.path.insert(0, str(folder))
    if not numbers:
        return importlib.import_module(dotted)
    narrow = _Narrow({int(number): tiny for number, tiny in numbers.items()})
    tree = narrow.visit(ast.parse((root / file).read_text(encoding="utf-8")))
    if unused := narrow.numbers.keys() - narrow.met:
        raise SystemExit(f"{file} does not contain {sorted(unused)}")
    module = types.ModuleType(dotted)
    module.__package__ = dotted.rpartition(".")[0]
    exec(compile(tree, file, "exec"), vars(module))
    return module


def pixels(count: int, golden: Golden, generator: torch.Generator) -> torch.Tensor:
    """``count`` images of differing contrast, (count, 3, height, width), with values that bfloat16 can hold."""
    height, width = golden.size
    small = torch.randn(count, 3, height // golden.block, width // golden.block, generator=generator)
    small *= torch.linspace(0.5, 1.5, count).view(-1, 1, 1, 1)
    return small.bfloat16().float().repeat_interleave(golden.block, dim=2).repeat_interleave(golden.block, dim=3)


@torch.no_grad()
def enliven(model: nn.Module, golden: Golden, generator: torch.Generator) -> None:
    """Weights that an importer cannot mix up unseen: no zero biases, BatchNorm statistics from data, random affine parameters.

    Every value is one that bfloat16 can hold: stored as float32, such values compress to less than half.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for module in model.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        module.weight.normal_(0, module.weight[0].numel() ** -0.5, generator=generator)  # outputs as large as inputs
        if module.bias is not None:
            module.bias.normal_(0, 0.3, generator=generator)
    for norm in norms:
        norm.weight.uniform_(0.6, 1.4, generator=generator)
        norm.bias.normal_(0, 0.3, generator=generator)
        norm.momentum = None  # the plain mean over the batches, not a moving one
    model.train()
    for _ in range(3):
        model(pixels(16, golden, generator), **golden.forward)
    for norm in norms:  # so that output and statistics no longer match, as in a trained network
        norm.weight.mul_(torch.empty_like(norm.weight).uniform_(0.8, 1.2, generator=generator))
        norm.bias.add_(torch.empty_like(norm.bias).normal_(0, 0.1, generator=generator))
        norm.momentum = 0.1  # torch's default again
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.bfloat16())
    model.eval()


class _Gates(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch
    """Keeps the weight of branch 0 of every selective kernel that runs: (images, channels)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.first: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._softmax.default and (result.ndim > 2):  # 2 axes: a softmax over the classes
            branch_axis = args[1] % result.ndim
            images = args[0].shape[1] if branch_axis == 0 else args[0].shape[0]
            self.first.append(result.select(branch_axis, 0).reshape(images, -1))
        return result


def run(model: nn.Module, golden: Golden, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Output, logits, and the weights of branch 0."""
    logits: list[torch.Tensor] = []
    hook = model.get_submodule(golden.classifier).register_forward_hook(
        lambda _module, _inputs, out: logits.append(out)
    )
    with torch.no_grad(), _Gates() as gates:
        output = model(image, **golden.forward)
    hook.remove()
    return output, logits[0], gates.first


def make(name: str, root: Path) -> Path:
    """Writes one golden and returns its path."""
    golden = GOLDENS[name]
    source = SOURCES[golden.source]
    module = load(root, source, golden.file, golden.numbers)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model: nn.Module = eval(golden.construct, vars(module))
    enliven(model, golden, generator)
    image = pixels(2, golden, generator)
    state = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    output32, logits32, gates = run(model, golden, image)
    output64, logits64, _ = run(model.double(), golden, image.double())

    # A gate that is almost constant would hide an importer's mistake in it.
    over_channels = [float(gate.std(dim=1).mean()) for gate in gates]
    over_images = [float((gate[0] - gate[1]).abs().mean()) for gate in gates]
    if min(over_channels) < 0.05 or min(over_images) < 0.005 or float(logits64.std()) < 0.1:
        raise SystemExit(f"{name}: a gate or the output is almost constant: {over_channels} {over_images} {logits64}")

    facts: dict[str, Any] = {}
    for shared in golden.facts_from:
        facts |= TABLE["facts"][shared]
    metadata = {
        "name": name,
        "source": {
            "url": source.url,
            "version": source.version,
            "licence": source.licence,
            "blobs": dict(source.files),
        },
        "torch": torch.__version__.partition("+")[0],
        "construct": golden.construct,
        "numbers_replaced": dict(golden.numbers),
        "forward_arguments": dict(golden.forward),
        "checkpoint": {"state_dict_under": golden.under, "beside": list(golden.beside), "key_prefix": golden.prefix},
        "classifier": golden.classifier,
        "facts": facts | dict(golden.facts),
        "gate_of_branch_0": {"std_over_channels": over_channels, "difference_between_images": over_images},
        # Kernel, stride, padding, dilation, groups, bias, eps of each layer: what torch prints of it.
        "layers": {
            key: f"{type(layer).__name__}({layer.extra_repr()})"
            for key, layer in model.named_modules()
            if not any(layer.children()) or any(True for _ in layer.parameters(recurse=False))
        },
    }
    arrays: dict[str, Array] = {f"state/{golden.prefix}{key}": value for key, value in state.items()}
    arrays |= {
        "input": image.numpy(),
        "output_float32": output32.numpy(),
        "output_float64": output64.numpy(),
        "logits_float32": logits32.numpy(),
        "logits_float64": logits64.numpy(),
        "metadata": np.array(json.dumps(metadata)),
    }
    path = FOLDER / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # mypy: an array could be named allow_pickle
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise SystemExit(f"{path.name} has {size} bytes, more than {MAX_BYTES}")
    error = float((logits32.double() - logits64).abs().max() / logits64.abs().max())
    gate = f"gates vary by {min(over_channels):.3f} over channels, {min(over_images):.3f} over images"
    print(f"{path.name}: {size} bytes, {len(state)} keys, float32 error {error:.1e}, {gate}")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=sorted(GOLDENS), help="the golden to make")
    parser.add_argument("--source", type=Path, metavar="DIR", help="the checkout that NAME is made from")
    parser.add_argument("--all", type=Path, metavar="DIR", help="make every golden, from the checkouts in DIR")
    options = parser.parse_args()
    if (options.name is None) == (options.all is None) or (options.name is None) != (options.source is None):
        parser.error("give NAME and --source DIR, or --all DIR")
    sys.dont_write_bytecode = True  # leave the checkouts as they are
    torch.set_num_threads(1)  # sums in one order
    if options.all:
        for name, golden in GOLDENS.items():
            make(name, options.all / golden.source)
    else:
        make(options.name, options.source)


if __name__ == "__main__":
    main()

"""Read the content of a bundle or a file without running it."""

from __future__ import annotations

import stat
from collections import Counter
from pathlib import Path
from typing import Any

from skdeploy.accuracy.facts import Facts, read_facts
from skdeploy.bundle.folder import MANIFEST, load_bundle
from skdeploy.core.errors import IntegrityError, UsageError

Rows = dict[str, Any]
KINDS = "a bundle's folder, or a .toml card, or an .onnx, .safetensors, .pth, .ckpt, .caffemodel or .engine file"


def inspect_bundle(folder: Path) -> Facts:
    """Return the facts about a bundle after checking every digest. Raises UsageError, IntegrityError."""
    return read_facts(load_bundle(folder))


def is_folder(path: Path) -> bool:
    """Whether the path is a folder, so a bundle, or a file. Raises UsageError if it is neither or out of reach."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(f"no file or bundle at {path}: {error.strerror}", advice=f"give {KINDS}") from error
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise UsageError(f"{path} is neither a file nor a folder", advice=f"give {KINDS}")
    return stat.S_ISDIR(mode)


def inspect_file(path: Path) -> Rows:
    """Facts of one file, by its kind. Raises UsageError for a kind unknown, and the errors of reading it."""
    if path.suffix == ".toml":
        return _card(path)
    if path.suffix == ".onnx":
        return _onnx(path)
    if path.suffix in (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar", ".caffemodel"):
        return _weights(path)
    if path.suffix == ".engine":
        return _engine(path)
    raise UsageError(f"{path} is not a kind of file that skdeploy knows", advice=f"give {KINDS}")


def _card(path: Path) -> Rows:
    """A card in words, once it is valid and its weights are those that it names."""
    from skdeploy.checkpoints.load import find_weights
    from skdeploy.zoo.cards import read_card
    from skdeploy.zoo.describe import describe

    spec = read_card(path)
    find_weights(spec, path, None, seed=0)
    return {"name": spec.name, **describe(spec)}


def _onnx(path: Path) -> Rows:
    from skdeploy.backends.onnxruntime import load_graph
    from skdeploy.core.patterns import module_of

    model = load_graph(path)
    graph = model.graph
    types: Counter[str] = Counter()
    for node in graph:
        types.update(value.dtype.name for value in node.outputs if value.dtype is not None)
    ranks = [len(value.shape) for node in graph for value in node.outputs if value.shape is not None]
    constants = [value.const_value for value in graph.initializers.values() if value.const_value is not None]
    return {
        "opset": model.opset_imports.get(""),
        "inputs": [str(value) for value in graph.inputs],
        "outputs": [str(value) for value in graph.outputs],
        "nodes": len(graph),
        "operators": dict(Counter(node.op_type for node in graph).most_common()),
        "tensor_types": dict(types.most_common()),
        "highest_rank": max(ranks, default=0),
        "constants": f"{sum(c.size for c in constants):,} values, {sum(c.nbytes for c in constants):,} bytes",
        "modules": sorted({module_of(node.name) for node in graph} - {""}),
    }


def _weights(path: Path) -> Rows:
    from skdeploy.checkpoints.read import read_checkpoint

    state = read_checkpoint(path).tensors
    return {
        "tensors": len(state),
        "values": sum(tensor.numel() for tensor in state.values()),
        "shapes": [f"{key}: {list(tensor.shape)}" for key, tensor in state.items()],
    }


def _engine(path: Path) -> Rows:
    for folder in path.resolve().parents:
        if (folder / MANIFEST).is_file():
            bundle = load_bundle(folder)
            artifact = bundle.artifact(path.resolve().relative_to(folder).as_posix())
            if artifact is None:
                break
            bundle.check(artifact)
            return {"bundle": str(folder), "sha256": artifact.sha256, **artifact.facts.dump()}
    raise IntegrityError(
        f"{path} is not in the manifest of a bundle",
        advice="an engine is native code: skdeploy opens only engines whose digest it knows",
    )

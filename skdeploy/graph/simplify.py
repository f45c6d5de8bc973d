"""onnx-simplifier, and the proof that it did not change what the graph computes."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from skdeploy.backends.base import Array
from skdeploy.backends.onnxruntime import OnnxRuntimeSession
from skdeploy.errors import PassError
from skdeploy.spec import TensorSpec

# Folding and fusing reorder float32 sums: with 1e6 terms at most, n * eps stays below this, relative to the largest output.
MAX_REL_CHANGE: Final = 1e-4


def simplify(model: ir.Model) -> ir.Model:
    """The simplified graph, checked on random input against the one given. Raises PassError."""
    import onnxsim

    before = ir.to_proto(model)
    try:
        simplified, _ = onnxsim.simplify(before)
    except Exception as error:  # the simplifier is C++ behind a binding: it raises anything
        raise PassError(
            f"onnx-simplifier failed: {str(error).splitlines()[0]}", advice="--no-simplify exports without it"
        ) from error
    check_same_function(before.SerializeToString(), simplified.SerializeToString())
    result = ir.from_proto(simplified)
    result.metadata_props.clear()  # the simplifier's log of its own run
    return result


def check_same_function(before: bytes, after: bytes, *, seed: int = 0) -> None:
    """Runs both on the same two random images. Raises PassError if interface or outputs differ."""
    with OnnxRuntimeSession(before, "cpu", None) as old, OnnxRuntimeSession(after, "cpu", None) as new:
        if [spec.name for spec in old.outputs] != [spec.name for spec in new.outputs]:
            raise PassError(f"onnx-simplifier changed the outputs from {old.outputs} to {new.outputs}")
        if old.inputs != new.inputs:
            raise PassError(f"onnx-simplifier changed the inputs from {old.inputs} to {new.inputs}")
        feeds = random_feeds(old.inputs, seed)
        expected, found = old.run(feeds), new.run(feeds)
    for name, reference in expected.items():
        change = float(np.max(np.abs(found[name] - reference)) / max(float(np.max(np.abs(reference))), 1e-30))
        if not change <= MAX_REL_CHANGE:
            raise PassError(
                f"onnx-simplifier changed the function: output {name} differs by {change:.2e} of its largest value",
                advice="--no-simplify exports without it; please report the model",
            )


def random_feeds(inputs: tuple[TensorSpec, ...], seed: int, *, free: int = 2, size: int = 64) -> dict[str, Array]:
    """Random inputs for a graph: ``free`` images where the batch is dynamic, ``size`` pixels where height and width are."""
    generator = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in inputs:
        shape = [d if isinstance(d, int) else free if d == "batch" else size for d in spec.shape]
        if spec.dtype == "uint8":
            feeds[spec.name] = generator.integers(0, 256, shape, dtype=np.uint8)
        else:
            feeds[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
    return feeds

"""onnx-simplifier, and the proof that it did not change what the graph computes."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from skdeploy.backends.base import Array
from skdeploy.backends.onnxruntime import OnnxRuntimeSession
from skdeploy.errors import ExportError, PassError
from skdeploy.spec import TensorSpec

# Folding and fusing reorder float32 sums: with 1e6 terms at most, n * eps stays below this, relative to the largest output.
MAX_REL_CHANGE: Final = 1e-4


ADVICE: Final = "--no-simplify exports without it; please report the model"


def simplify(model: ir.Model) -> ir.Model:
    """The simplified graph, checked on random input against the one given. Raises PassError."""
    import onnxsim

    before = ir.to_proto(model)
    try:
        simplified, _ = onnxsim.simplify(before)
    except Exception as error:
        raise PassError(
            f"onnx-simplifier failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}",
            advice="--no-simplify exports without it",
        ) from error
    check_same_function(before.SerializeToString(), simplified.SerializeToString())
    result: ir.Model = ir.from_proto(simplified)
    result.metadata_props.clear()  # the simplifier's log of its own run
    return result


def check_same_function(before: bytes, after: bytes, *, seed: int = 0) -> None:
    """Runs both on the same three random images. Raises PassError if interface or outputs differ."""
    with OnnxRuntimeSession(before, "cpu", None) as old:
        feeds = random_feeds(old.inputs, seed)
        expected = old.run(feeds)
    try:
        with OnnxRuntimeSession(after, "cpu", None) as new:
            if old.inputs != new.inputs or [spec.name for spec in old.outputs] != [spec.name for spec in new.outputs]:
                raise PassError(
                    "onnx-simplifier changed the interface"
                    f" from {_shown(old.inputs)} -> {_shown(old.outputs)} to {_shown(new.inputs)} -> {_shown(new.outputs)}",
                    advice=ADVICE,
                )
            found = new.run(feeds)
    except ExportError as error:
        raise PassError(f"onnx-simplifier broke the graph: {error.message}", advice=ADVICE) from error
    for name, reference in expected.items():
        if (found[name].shape, found[name].dtype) != (reference.shape, reference.dtype):
            raise PassError(
                f"onnx-simplifier changed the output {name} from {reference.dtype}{list(reference.shape)} "
                f"to {found[name].dtype}{list(found[name].shape)}",
                advice=ADVICE,
            )
        change = float(np.max(np.abs(found[name] - reference)) / max(float(np.max(np.abs(reference))), 1e-30))
        if not change <= MAX_REL_CHANGE:
            raise PassError(
                f"onnx-simplifier changed the function: output {name} differs by {change:.2e} of its largest value",
                advice=ADVICE,
            )


def _shown(specs: tuple[TensorSpec, ...]) -> str:
    return "; ".join(map(str, specs))


def random_feeds(inputs: tuple[TensorSpec, ...], seed: int, *, free: int = 3, size: int = 64) -> dict[str, Array]:
    """Random inputs for a graph: ``free`` images where the batch is dynamic, ``size`` pixels where height and width are.

    Three images, because two is what the exporter saw: a batch that was baked in must show.
    """
    generator = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in inputs:
        shape = [d if isinstance(d, int) else free if d == "batch" else size for d in spec.shape]
        if spec.dtype == "uint8":
            feeds[spec.name] = generator.integers(0, 256, shape, dtype=np.uint8)
        else:
            feeds[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
    return feeds

"""onnx-simplifier, and the proof that it did not change what the graph computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import onnx_ir as ir
from onnx import ModelProto

from skdeploy.core.errors import PassError
from skdeploy.ir.large import portable, through_proto
from skdeploy.passes.same_function import require_same_function

ADVICE: Final = "export without it: --no-simplify; please report the model"


def simplify(model: ir.Model, sizes: Mapping[str, int] | None = None) -> ir.Model:
    """The simplified graph, checked on random input against the one given. Raises PassError.

    Weights of more than 2 GB are inputs to onnx-simplifier, so it folds nothing into them. ``sizes``: of free dimensions in
    that input, by name.
    """
    import onnxsim

    before = portable(model)

    def simplified(proto: ModelProto) -> ModelProto:
        changed: ModelProto = onnxsim.simplify(proto)[0]
        return changed

    try:
        result = through_proto(model, simplified)
    except Exception as error:  # C++ behind a binding: it raises anything
        raise PassError(
            f"onnx-simplifier failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}",
            advice="export without it: --no-simplify",
        ) from error
    require_same_function(before, portable(result), "onnx-simplifier", ADVICE, sizes=sizes)
    result.metadata_props.clear()  # the simplifier's log of its own run
    return result

"""onnx-simplifier, and the proof that it did not change what the graph computes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Final

import onnx_ir as ir
from onnx import ModelProto

from skdeploy.core.errors import PassError
from skdeploy.core.memory import give_back, trim
from skdeploy.ir.large import portable, through_file, through_proto
from skdeploy.passes.same_function import expected_of, require_same_function

ADVICE: Final = "export without it: --no-simplify; please report the model"


def simplify(model: ir.Model, sizes: Mapping[str, int] | None = None, *, spent: bool = False) -> ir.Model:
    """The simplified graph, checked on random input against the one given. Raises PassError.

    Weights of more than 2 GB are inputs to onnx-simplifier, so it folds nothing into them. ``sizes``: of free dimensions in
    that input, by name. ``spent``: nobody reads the given graph again, so it loses its weights once they are copied.
    """
    with _without_torch():
        import onnxsim

    before = portable(model)
    expected, large = expected_of(before, sizes=sizes), bool(before.weights)
    del before
    if large:
        give_back()  # its copies of the weights, before the simplifier makes its own

    def simplified(given: ModelProto | Path) -> ModelProto:
        changed: ModelProto = onnxsim.simplify(str(given) if isinstance(given, Path) else given)[0]
        return changed

    try:
        result = through_file(model, simplified, spent=spent) if large else through_proto(model, simplified)
    except OSError:  # of the file that the simplifier reads: a full disk is not its failure
        raise
    except Exception as error:  # C++ behind a binding: it raises anything
        raise PassError(
            f"onnx-simplifier failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}",
            advice="export without it: --no-simplify",
        ) from error
    if large:
        trim()  # what the simplifier has freed, before the session takes its own
    require_same_function(expected, portable(result), "onnx-simplifier", ADVICE)
    if large:
        give_back()  # the session's copy, before the graph is written
    result.metadata_props.clear()  # the simplifier's log of its own run
    return result


@contextmanager
def _without_torch() -> Iterator[None]:
    """Lets an import take torch for a package that is not installed, unless it is loaded. onnx-simplifier 0.8 loads it for a
    module that skdeploy does not use: 0.2 GB, and 0.8 seconds.
    """
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]  # None refuses an import: PEP 328
    if "torch" in modules:
        yield
        return
    modules["torch"] = None
    try:
        yield
    finally:
        del modules["torch"]

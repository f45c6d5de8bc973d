"""The weights back into a plan that was built without them: from the ONNX file that it was built from, by TensorRT's parser."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from skdeploy.core.errors import EngineError
from skdeploy.core.listing import some
from skdeploy.engines._api import Compiler, Engine, Refits
from skdeploy.engines._log import capture
from skdeploy.engines._made import made
from skdeploy.engines._nodes import parser_errors

_ADVICE = "a stripped plan takes weights only from its own ONNX file: build it again from this one"


def refit(trt: Compiler, engine: Engine, onnx_path: Path) -> None:
    """Gives a deserialized engine, built with ``strip``, the weights of ``onnx_path``; it may then run.

    The plan was built with REFIT_IDENTICAL: other weights than those it was built with are undefined behaviour to TensorRT, so
    check the file's digest first. Raises EngineError if the file does not fit or weights stay missing.
    """
    refits = cast(Refits, trt)
    with capture(trt) as (logger, log):
        refitter = made(trt, log, "a refitter of this plan", lambda: refits.Refitter(engine, logger), advice=_ADVICE)
        parser = made(trt, log, "a refitter from ONNX", lambda: refits.OnnxParserRefitter(refitter, logger))
        fits = parser.refit_from_file(str(onnx_path))
        errors = parser_errors(parser)
        if not fits or errors:
            why = "; ".join(errors) or log.reasons()
            raise EngineError(f"the weights of {onnx_path} do not fit the plan: {why}", advice=_ADVICE)
        missing = refitter.get_missing_weights()
        if missing:
            raise EngineError(f"{onnx_path} lacks weights that the plan needs: {some(missing)}", advice=_ADVICE)
        if not refitter.refit_cuda_engine():
            raise EngineError(
                f"{trt.__name__} {trt.__version__} could not refit from {onnx_path}: {log.reasons()}", advice=_ADVICE
            )
        del parser  # before the refitter, which it points to

"""Whether the parser of a compiler that builds ahead of time, TensorRT-RTX, takes a graph as it lies on disk: without a GPU."""

from __future__ import annotations

from pathlib import Path

from skdeploy import engines
from skdeploy.core.errors import EngineError, PassError
from skdeploy.engines import _build, _made
from skdeploy.engines._log import capture


def parser_refusal(onnx_path: Path) -> str:
    """Why TensorRT-RTX, where it is installed, does not take the graph; empty if it does, or is not here.

    A refusal is a limit of TensorRT: the file is valid ONNX. Raises PassError for a graph that the parser takes with other
    types than it says: an engine would compute something else.
    """
    here = (
        name for name in engines.COMPILERS if engines.compiler(name).AHEAD_OF_TIME and not engines.obstacle(name)[0]
    )
    name = next(here, None)
    if name is None:
        return ""
    trt = engines.load(name)
    with capture(trt) as (logger, log):
        builder = _made.builder(trt, logger, log)
        network = _made.network(trt, log, builder)
        try:
            _build._parse(trt, network, logger, log, onnx_path)
        except EngineError as error:
            if log.type_warnings():
                raise PassError(
                    error.message.replace(str(onnx_path), "the graph"),
                    advice="keep these nodes' modules in FP32 with --keep-fp32, or replace them in the network",
                ) from error
            return error.message.replace(str(onnx_path), "the graph")
    return ""

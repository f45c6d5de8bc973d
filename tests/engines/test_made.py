"""What TensorRT answers null to ends in an error of ours, with the compiler's reasons."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from skdeploy.core.errors import EngineError
from skdeploy.engines import refit
from skdeploy.engines._log import Log
from skdeploy.engines._made import made


class Base:
    def __init__(self) -> None:
        pass


def null(*_: object) -> object:
    raise TypeError("pybind11::init(): factory function returned nullptr")


class Module(SimpleNamespace):
    __hash__ = object.__hash__


def module(**more: object) -> Any:
    return Module(__name__="tensorrt", __version__="10.13.0", ILogger=Base, IErrorRecorder=Base, **more)


@pytest.mark.parametrize("make", [null, lambda: None], ids=["constructor", "method"])
def test_null_is_an_error_with_the_compilers_reasons(make: Any) -> None:
    log = Log()
    log.add("ERROR", "CUDA initialization failure with error: 35")
    with pytest.raises(EngineError, match=r"tensorrt 10.13.0 cannot make a builder: .*initialization failure"):
        made(module(), log, "a builder", make)


def test_a_call_with_wrong_arguments_is_no_null() -> None:
    def incompatible() -> object:
        raise TypeError("__init__(): incompatible constructor arguments")

    with pytest.raises(TypeError, match="incompatible"):
        made(module(), Log(), "a builder", incompatible)


@pytest.mark.parametrize(
    ("refitter", "parser", "words"),
    [(null, null, "a refitter of this plan"), (lambda *_: object(), null, "a refitter from ONNX")],
)
def test_a_plan_that_cannot_be_refitted_is_told(refitter: Any, parser: Any, words: str) -> None:
    """Such as one that was not built to be refitted, or is damaged."""
    trt = module(Refitter=refitter, OnnxParserRefitter=parser)
    engine: Any = object()
    with pytest.raises(EngineError, match=f"cannot make {words}"):
        refit.refit(trt, engine, Path("model.onnx"))

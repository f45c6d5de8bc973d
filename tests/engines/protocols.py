"""Compares the Protocols of ``engines/_api.py`` with a TensorRT module: names, arguments, types, setters, deprecations.

As a program, ``python protocols.py FOLDER LIBRARY...`` does so with the bindings in FOLDER after it has loaded the libraries,
and writes a JSON list of what it found: a second TensorRT would not go into the process of the tests.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args, get_type_hints

from skdeploy.core.errors import DependencyError
from skdeploy.engines import _api, _made
from skdeploy.engines._log import capture

CLASSES: Final[Mapping[type, str]] = {
    _api.Tensor: "ITensor",
    _api.Layer: "ILayer",
    _api.Network: "INetworkDefinition",
    _api.OptimizationProfile: "IOptimizationProfile",
    _api.BuilderConfig: "IBuilderConfig",
    _api.HostMemory: "IHostMemory",
    _api.Builder: "Builder",
    _api.ParserError: "ParserError",
    _api.OnnxParser: "OnnxParser",
    _api.ExecutionContext: "IExecutionContext",
    _api.Engine: "ICudaEngine",
    _api.EngineInspector: "EngineInspector",
    _api.Runtime: "Runtime",
    _api.TimingCache: "ITimingCache",
    _api.Refitter: "Refitter",
    _api.OnnxParserRefitter: "OnnxParserRefitter",
}
CONSTRUCTORS: Final[Mapping[str, Any]] = {
    name: get_type_hints(module)[name]
    for module, names in (
        (_api.Compiler, ("Builder", "OnnxParser", "Runtime")),
        (_api.Refits, ("Refitter", "OnnxParserRefitter")),
    )
    for name in names
}
# What is assigned to; the rest is only read.
SET: Final = {
    "error_recorder", "profiling_verbosity", "progress_monitor", "num_compute_capabilities", "builder_optimization_level",
    "hardware_compatibility_level", "default_device_type", "DLA_core", "execution_context",
}  # fmt: skip
ENUMERATIONS: Final = {
    "BuilderFlag": {
        "TF32",
        "VERSION_COMPATIBLE",
        "EXCLUDE_LEAN_RUNTIME",
        "STRIP_PLAN",
        "REFIT_IDENTICAL",
        "GPU_FALLBACK",
    },
    "DeviceType": {"DLA"},
    "HardwareCompatibilityLevel": {"NONE", "AMPERE_PLUS"},  # SAME_COMPUTE_CAPABILITY came with TensorRT 10.9
    "LayerInformationFormat": {"JSON"},
    "MemoryPoolType": {"WORKSPACE", "TACTIC_DRAM"},
    "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED"},
    "ProfilingVerbosity": {"DETAILED"},
}
ONLY_RTX: Final = {"num_compute_capabilities", "set_compute_capability"}
# pybind11's words for what a Python caller gives or gets, by ours.
WORDS: Final[Mapping[str, set[str]]] = {
    "int": {"SupportsInt", "SupportsIndex", "SupportsInt | SupportsIndex"},
    "bytes": {"buffer", "Buffer"},
    "Sequence[int]": {"Dims", "tuple", "list"},
    "Sequence[str]": {"List[str]", "list[str]"},
    "Sequence[Sequence[int]]": {"List[Dims]", "list[Dims]"},
}


def members(protocol: type) -> set[str]:
    """Those that the Protocol says of itself."""
    return {name for name in [*vars(protocol), *inspect.get_annotations(protocol)] if not name.startswith("_")}


def problems(trt: Any, *, rtx: bool) -> list[str]:
    """Everything in which the module is not what the Protocols say; empty if nothing."""
    return [*_classes(trt, rtx), *_constructors(trt), *_modules(trt, rtx), *_enumerations(trt)]


def _classes(trt: Any, rtx: bool) -> Iterator[str]:
    for protocol, real in CLASSES.items():
        attributes = inspect.get_annotations(protocol)
        for name in sorted(members(protocol) - (set() if rtx else ONLY_RTX)):
            found = inspect.getattr_static(getattr(trt, real), name, None)
            where = f"{real}.{name}"
            if found is None:
                yield f"{where} is absent"
            elif name in attributes:
                if not isinstance(found, property):
                    yield f"{where} is a {type(found).__name__}, and not a property"
                elif name in SET and found.fset is None:
                    yield f"{where} cannot be set"
                yield from _deprecated(where, found.__doc__)
            else:
                doc = getattr(getattr(trt, real), name).__doc__ or ""
                hints = get_type_hints(vars(protocol)[name])
                yield from _call(trt, where, hints, hints.pop("return"), signatures(doc, name))
                yield from _deprecated(where, doc)


def _constructors(trt: Any) -> Iterator[str]:
    for real, made in CONSTRUCTORS.items():
        arguments, _ = get_args(made)
        found = signatures(getattr(trt, real).__init__.__doc__ or "", "__init__")
        yield from _call(trt, real, dict(enumerate(arguments)), type(None), found)


def _modules(trt: Any, rtx: bool) -> Iterator[str]:
    wanted = members(_api.Compiler) | members(_api.Refits) | (members(_api.TargetsCapabilities) if rtx else set())
    yield from (f"the module has no {name}" for name in sorted(wanted - set(dir(trt))))
    if rtx:
        yield from (f"Runtime.{name} is absent" for name in members(_api.ValidatesPlans) - set(dir(trt.Runtime)))


def _enumerations(trt: Any) -> Iterator[str]:
    for enumeration, wanted in ENUMERATIONS.items():
        found = set(getattr(trt, enumeration).__members__)
        yield from (f"{enumeration}.{name} is absent" for name in sorted(wanted - found))
    yield from (
        f"the data type {name} has no name" for name in sorted(set(trt.DataType.__members__) - set(_api.DTYPES))
    )


def _deprecated(where: str, doc: str | None) -> Iterator[str]:
    line = next((line.strip() for line in (doc or "").splitlines() if "deprecated" in line.lower()), "")
    if line:
        yield f"{where}: {line}"


def signatures(doc: str, name: str) -> list[tuple[list[tuple[str, bool]], str]]:
    """Of each overload in a docstring of pybind11's: type and "has a default" of the arguments behind self; what it returns."""
    found = []
    for inside, answer in re.findall(rf"^(?:\d+\. )?{re.escape(name)}\((self.*)\) -> (.*)$", doc, re.MULTILINE):
        arguments = re.split(r", (?=\w+: )", inside)[1:]
        typed = [one.partition(": ")[2].partition(" = ") for one in arguments]
        found.append(([(short(kind), bool(equals)) for kind, equals, _ in typed], short(answer)))
    return found


def short(kind: str) -> str:
    """A type without the modules that it is from."""
    return re.sub(r"\b(?:\w+(?:\.|::))+(?=\w)", "", kind).strip()


def _call(
    trt: Any, where: str, takes: Mapping[Any, Any], answers: Any, found: list[tuple[list[tuple[str, bool]], str]]
) -> Iterator[str]:
    given, wanted = [_word(hint) for hint in takes.values()], _word(answers)
    for theirs, answer in found:
        enough = len(theirs) >= len(given) and all(default for _, default in theirs[len(given) :])
        fits = all(_fits(trt, ours, kind) for ours, (kind, _) in zip(given, theirs, strict=False))
        if enough and fits and (wanted == "None" or _fits(trt, wanted, answer)):
            return
    yield f"{where}({', '.join(given)}) -> {wanted} is none of {found}"


def _word(hint: Any) -> str:
    if hint is type(None):
        return "None"
    text = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", text).removesuffix(" | None")


def _fits(trt: Any, ours: str, theirs: str) -> bool:
    if ours in ("object", theirs) or theirs in WORDS.get(ours, set()):
        return True
    if ours == "Enumerated":
        return hasattr(getattr(trt, theirs, None), "__members__")
    return theirs.replace("IParserError", "ParserError") in (
        real for one, real in CLASSES.items() if one.__name__ == ours
    )


def nulls(trt: Any) -> Iterator[str]:
    """Whether a constructor that answers null, as all of a library's stub do, ends in our error and not in pybind11's."""
    with capture(trt) as (logger, log):
        try:
            _made.runtime(trt, logger, log)
        except DependencyError as error:
            if "cannot make a runtime on this machine" not in error.message:
                yield f"a runtime that is null: {error.message}"
        else:
            yield "a runtime that is null was taken for one"


def main() -> None:
    folder, *libraries = sys.argv[1:]
    for library in libraries:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, folder)
    trt = importlib.import_module("tensorrt_bindings")
    print(json.dumps({"version": trt.__version__, "problems": [*problems(trt, rtx=False), *nulls(trt)]}))


if __name__ == "__main__":
    main()

"""TensorRT's messages: one logger per module for the life of the process, one Log per job.

TensorRT keeps the first logger it is given and ignores later ones, so the logger outlives the builds and each build
captures its own messages. Two jobs of one module at a time would mix their messages: skdeploy runs one.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Final, NamedTuple, cast

from skdeploy.engines._api import Compiler, Enumerated
from skdeploy.engines._nodes import reason_with_nodes

_PARSING_NODE: Final = re.compile(r"Parsing node: (?P<node>.*) \[(?P<operator>\w+)\]")
_MEMORY: Final = re.compile(r"Total (?P<kind>Activation|Weights) Memory: (?P<bytes>\d+) bytes")
_DRIVER_NOISE: Final = "catchCudaError"  # the second half of any error on a machine without a driver

_TYPE_WORD: Final = re.compile(
    r"\b(u?int(4|8|16|32|64)|fp(4|8|16|32|64)|bf16|bfloat16|float(16|32|64)?|half|double|zero[ _-]?points?"
    r"|data ?types?)\b",
    re.IGNORECASE,
)
_CHANGE_WORDS: Final = re.compile(
    r"default(ing|s|ed)? to|instead|\bcast|convert|clamp|truncat|fall(s|ing|back| back)|has type|must have"
    r"|not (natively |currently )?support|unsupported|outside (of )?(the )?(range|\w+ range)|subnormal",
    re.IGNORECASE,
)
# Word for word, since anything near it ("to fp16", "activations to fp32") would be a change of what is computed.
_WIDENED_SCALES: Final = re.compile(r"\(foreignNode\) Converting conv (activation|weight) scales to fp32\.?")

_BAD_PROFILE: Final = re.compile(r"Profile k(MIN|OPT|MAX) values are not self-consistent")


class Warned(NamedTuple):
    """A warning, and the node that was being parsed, as "name (operator)"; empty outside the parser."""

    node: str
    text: str

    def __str__(self) -> str:
        return f"node {self.node}: {self.text}" if self.node else self.text


class Recorded(NamedTuple):
    """An error as TensorRT's error recorder got it."""

    code: str
    text: str


@dataclass
class Log:
    """The messages of one job."""

    warnings: list[Warned] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    recorded: list[Recorded] = field(default_factory=list)
    memory_bytes: dict[str, int] = field(default_factory=dict)
    node: str = ""

    def add(self, severity: str, message: str) -> None:
        """Takes one message. Of those that are no warning or error, only the node and the memory totals are kept."""
        if parsing := _PARSING_NODE.match(message):
            self.node = f"{parsing['node']} ({parsing['operator']})"
        elif total := _MEMORY.search(message):
            # A plan for several architectures reports each: the largest is what a GPU may need.
            kind = total["kind"].lower()
            self.memory_bytes[kind] = max(self.memory_bytes.get(kind, 0), int(total["bytes"]))
        elif severity == "WARNING":
            self.warnings.append(Warned(self.node, message))
        elif severity in ("ERROR", "INTERNAL_ERROR") and _DRIVER_NOISE not in message:
            self.errors.append(message)

    def record(self, code: str, message: str) -> None:
        """Takes an error from the error recorder."""
        self.recorded.append(Recorded(code, message))
        self.add("ERROR", message)

    def parsed(self) -> None:
        """The parser is done: what comes now is about no node."""
        self.node = ""

    def reasons(self, nodes: Mapping[str, str] | None = None) -> str:
        """The errors in one line, each once; with ``nodes``, modules by node name, those that each is about."""
        texts = (reason_with_nodes(error, nodes or {}) for error in self.errors)
        return "; ".join(dict.fromkeys(texts)) or "it gave no reason"

    def type_warnings(self) -> list[str]:
        """The warnings that ``changes_types``, each once, with their nodes."""
        return list(dict.fromkeys(str(warning) for warning in self.warnings if changes_types(warning.text)))

    def profile_warnings(self) -> list[str]:
        """The warnings that some shapes of a profile cannot be run, each once. TensorRT-RTX 1.7 builds nevertheless; of too
        large a batch it says: "Profile kMAX values are not self-consistent. a/Conv: tensor volume exceeds 1099511627776,
        dimensions are [batch,64,14,14] Condition '<' violated: ...".
        """
        unfit = (warning.text for warning in self.warnings if _BAD_PROFILE.match(warning.text))
        return list(dict.fromkeys(text.partition(" Condition ")[0] for text in unfit))


def changes_types(message: str) -> bool:
    """Whether a warning says that a tensor gets another type than the graph gives it. Then the engine is not the graph.

    True if it names a type (INT8, Half, zero point ...) and a change or a mismatch (defaulting to, instead, cast,
    clamped, falls back, has type, not supported ...). TensorRT-RTX 1.7 says: "TensorRT supports
    QuantizeLinear/ DequantizeLinear with UINT8 zero_point only on DLA (version >= 3.16). Defaulting to INT8 instead."
    and "IElementWiseLayer with inputs x and y: first input has type Float but second input has type Half." Parsers up to 8.6
    say: "Your ONNX model has been generated with INT64 weights, while TensorRT does not natively
    support INT64. Attempting to cast down to INT32."

    False for other warnings, which go into the report: "getHardwareCompatibilityLevel() is unsupported in TensorRT-RTX."
    names no type, and "Detected layernorm nodes in FP16" changes none.

    False also for one that names a type and loses nothing: for INT8 convolutions with FP16 scales, TensorRT-RTX 1.7's builder
    says "(foreignNode) Converting conv activation scales to fp32." A scale is a constant of the kernel, every FP16 number is
    an FP32 number, and the layers' types stay as they were parsed.
    """
    if _WIDENED_SCALES.fullmatch(message.strip()):
        return False
    return bool(_TYPE_WORD.search(message) and _CHANGE_WORDS.search(message))


class _Collector:
    """Holds the Log that messages go to now; messages between jobs go to one that nobody reads."""

    def __init__(self, trt: Compiler) -> None:
        self.log = Log()

        def initialise(logger: object) -> None:
            trt.ILogger.__init__(logger)  # type: ignore[misc]  # pybind11 wants its own __init__ called by name

        def take(_: object, severity: Enumerated, message: str) -> None:
            self.log.add(severity.name, message)

        self.logger: object = type("CollectingLogger", (trt.ILogger,), {"__init__": initialise, "log": take})()
        self.recorder = self._error_recorder(trt)

    def _error_recorder(self, trt: Compiler) -> object:
        """An IErrorRecorder that adds to the Log as the logger does: errors go to it in the logger's place."""

        def initialise(recorder: object) -> None:
            trt.IErrorRecorder.__init__(recorder)  # type: ignore[misc]  # as above

        def report(_: object, code: Enumerated, description: str) -> bool:
            self.log.record(code.name, description)
            return False  # not for us to say that it is fatal

        methods = {
            "__init__": initialise,
            "report_error": report,
            "num_errors": lambda _: len(self.log.recorded),
            "get_error_code": lambda _, index: getattr(vars(trt)["ErrorCodeTRT"], self.log.recorded[index].code),
            "get_error_desc": lambda _, index: self.log.recorded[index].text,
            "has_overflowed": lambda _: False,
            "clear": lambda _: self.log.recorded.clear(),
        }
        recorder: object = type("CollectingRecorder", (trt.IErrorRecorder,), methods)()
        return recorder


@cache
def _collector(trt: Hashable) -> _Collector:
    return _Collector(cast(Compiler, trt))


def error_recorder(trt: Compiler) -> object:
    """Return the module's only error recorder, which adds to the Log of the running job, see ``capture``.

    Give it to a builder and its network only after the graph has been parsed. A parser replaces the recorder that it finds
    and restores it when the parser is freed, which is after its network: TensorRT-RTX 1.7 then crashes.
    """
    return _collector(cast(Hashable, trt)).recorder


@contextmanager
def capture(trt: Compiler) -> Iterator[tuple[object, Log]]:
    """The module's only logger, and the Log of what is said inside the ``with`` block."""
    collector = _collector(cast(Hashable, trt))
    log = collector.log = Log()
    try:
        yield collector.logger, log
    finally:
        collector.log = Log()

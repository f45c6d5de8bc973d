"""Where in the graph a compiler's message points to: its nodes, and the modules of the network that these belong to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from skdeploy.core.listing import some
from skdeploy.engines._api import OnnxParser, OnnxParserRefitter, ParserError

_WHERE_IN_NVIDIAS_CODE: Final = re.compile(r"\s*In \w+ at /?\S+:\d+\)?")
_ERROR_CODE: Final = re.compile(r"^(\[[\w.]+::\w+::\d+\]|\w+::\w+:)\s*Error Code \d+: ")
_SOURCE_LINE: Final = re.compile(r"\[[\w.]+:\d+: [^\]]*\] ")
_WRAPPER: Final = re.compile(r"^[\w ]*\((?P<reason>.*)\)?$", re.DOTALL)
_FOREIGN: Final = re.compile(r"\{ForeignNode\[(?P<first>.+?)\.\.\.(?P<last>.+?)\]\}")
MAX_MODULES_SHOWN: Final = 5


def parser_errors(parser: OnnxParser | OnnxParserRefitter) -> list[str]:
    """Each in one line, with its node."""
    return [_explained(parser.get_error(index)) for index in range(parser.num_errors)]


def _explained(error: ParserError) -> str:
    """The parser's whole reason for an operator that it lacks is the word "false"."""
    node, operator = error.node_name(), error.node_operator()
    lines = [line for line in error.desc().splitlines() if "catchCudaError" not in line]
    reason = " ".join(lines).removeprefix("Assertion failed: ")
    where = (
        f"node {node!r} ({operator})" if node else "no single node, but the file or the graph's own inputs and weights"
    )
    lacks = reason == "false" and operator
    return f"{where}: " + (f"the operator {operator} is not supported" if lacks else f"{reason} [{error.func()}]")


def nodes_in(message: str, nodes: Mapping[str, str]) -> tuple[str, ...]:
    """Those of the graph's nodes (module by node name) that a message names, in the graph's order.

    TensorRT names a fused layer by its parts, as "conv_1 + relu_1", and a part that Myelin compiles by its first and last
    node, as "{ForeignNode[conv_1...add_2]}". Names are matched whole: node_1 is not found in node_12.
    """
    return tuple(
        name for name in nodes if name and re.search(rf"(?<![\w./]){re.escape(name)}(?![\w/]|\.\w)", _ends(message))
    )


def _ends(message: str) -> str:
    return _FOREIGN.sub(lambda found: f" {found['first']} , {found['last']} ", message)


def reason_with_nodes(message: str, nodes: Mapping[str, str]) -> str:
    """A compiler's error without the addresses of its own source, and the modules that it is about."""
    text = _WHERE_IN_NVIDIAS_CODE.sub("", _SOURCE_LINE.sub("", _ERROR_CODE.sub("", message))).strip()
    wrapped = _WRAPPER.match(text)
    if wrapped and message.rstrip().endswith(")"):
        text = text[: wrapped.start("reason") - 1].strip() + ": " + wrapped["reason"].rstrip(") .")
    modules = list(dict.fromkeys(nodes[name] or name for name in nodes_in(message, nodes)))
    if not modules:
        return text
    return f"{text} (in {some(modules, MAX_MODULES_SHOWN)})"

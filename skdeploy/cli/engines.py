"""How the engines of a bundle are shown, by ``skdeploy inspect --engine``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skdeploy.engines.proof import PrecisionProof, WeightedPrecision
    from skdeploy.inspect.engine_inspection import InspectedEngine
    from skdeploy.report.blocks import Cell, Tone

_SHOWN_MODULES = 4


def show_engines(folder: Path, *, layers: bool, json: bool) -> None:
    """Prints every engine of a bundle; raises EngineError if one is not what was asked for: after the table, and in place of
    the JSON, where ``__main__`` prints the error as the one object on stdout.
    """
    from skdeploy.cli.console import write_json
    from skdeploy.inspect.engine_inspection import inspect_engines

    found = inspect_engines(folder)
    if not json:
        for facts in found:
            _print(facts, layers=layers)
    for facts in found:
        facts.check()
    if json:
        write_json({"bundle": str(folder), "engines": [facts.as_json() for facts in found]})


def _print(facts: InspectedEngine, *, layers: bool) -> None:
    from skdeploy.engines.proof import shares_text
    from skdeploy.report.blocks import size_text
    from skdeploy.report.terminal import Terminal

    terminal = Terminal()
    memory = ", ".join(
        f"{name.removesuffix('_bytes').replace('_', ' ')} {size_text(n)}" for name, n in facts.record.memory.items()
    )
    proof = facts.proof
    rows = [
        ("engine", f"{facts.artifact.path}, {facts.artifact.precision or ''}, {size_text(facts.artifact.size_bytes)}"),
        ("built with", facts.built_with + _built_for(facts)),
        ("runs here", facts.runs_here),
        ("memory", memory),
        ("proof", proof.text() if proof else "none: an older skdeploy built it"),
        ("layers", f"{len(proof.layers)}: {shares_text(proof.share_of_layers)}" if proof else ""),
    ]
    terminal.brief(f"{facts.artifact.path}: runs here: {facts.runs_here}")
    for name, text in rows:
        if text:
            terminal.say(f"{name + ':':<11} {text}")
    if proof is not None:
        terminal.table(("runs in", "graph", ">layers", ">MACs", "which"), _weighted(proof))
        if layers:
            columns = ("layer", "kind", "precision")
            terminal.table(columns, [(layer.name, layer.kind, layer.precision) for layer in proof.layers])


def _built_for(facts: InspectedEngine) -> str:
    built = facts.record.built_for
    if built is None:
        return ""
    gpu = f"{built.gpu}, " if built.gpu else ""
    capabilities = f"compute capability {', '.join(built.compute_capabilities)}, " if built.compute_capabilities else ""
    return f", for {gpu}{capabilities}{built.system} {built.machine}"


def _weighted(proof: PrecisionProof) -> Iterator[list[Cell]]:
    """Convolutions and matrix products in groups of one type each, the most multiply-accumulates first."""
    from skdeploy.report.blocks import Cell

    groups: dict[tuple[str, str], list[WeightedPrecision]] = {}
    for layer in proof.weighted:
        groups.setdefault((layer.found, layer.wanted), []).append(layer)
    total = sum(layer.macs or 0 for layer in proof.weighted)
    known = proof.share_of_macs is not None and total > 0
    for (found, wanted), group in sorted(groups.items(), key=lambda item: -sum(layer.macs or 0 for layer in item[1])):
        share = f"{sum(layer.macs or 0 for layer in group) / total:.1%}" if known else "open"
        named = [layer.module or layer.node for layer in group]
        more = f", and {len(named) - _SHOWN_MODULES} more" if len(named) > _SHOWN_MODULES else ""
        which = ", ".join(named[:_SHOWN_MODULES]) + more
        tone: Tone = "bad" if group[0].wider else ""
        yield [Cell(text, tone=tone) for text in (found, wanted, str(len(group)), share, which)]

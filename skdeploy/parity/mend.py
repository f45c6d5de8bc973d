"""Which modules must stay FP32 for an FP16 graph to be in parity: tried, so that the advice is known to work."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from skdeploy.backends import onnxruntime
from skdeploy.backends.base import Array, Session
from skdeploy.core.errors import PrecisionError, UsageError
from skdeploy.core.patterns import module_of, modules_pattern
from skdeploy.ir.placement import unit_of
from skdeploy.parity.headroom import measure_headroom
from skdeploy.parity.report import MIN_HEADROOM, Mend
from skdeploy.passes.half import HalfPrecision

SECONDS: Final = 60.0  # an export that failed waits as long for its advice; larger networks are tried in larger parts
FEWEST: Final = 8  # parts to try, however long it takes: fewer than that tell little
LARGE: Final = 0.5  # of the layers: a part that has more is no part
MOST_KEPT: Final = 4  # parts; where more are needed, FP16 is not worth having


Feeds = tuple[dict[str, Array], int]  # a batch, and how many samples of it count


class Judged(NamedTuple):
    """One attempt: whether everything was in parity, and the SQNR of the worst image; minus infinity for what is not finite."""

    passes: bool
    sqnr_db: float


def find_mend(
    graph: Path, given: Sequence[str], judge: Callable[[Session], Judged], feeds: Collection[Feeds]
) -> Mend | None:
    """The parts that a network must keep in FP32 beside those ``given``; None if a few of them do not do it.

    ``graph`` is FP32. ``judge`` compares the FP16 graph with the reference, on all that it failed on. Where it is not
    finite, what passes FP16's end on ``feeds`` is kept first. Then each part is tried alone, and the best are kept together,
    one more each time.
    """
    model = onnxruntime.load_graph(graph)
    started = time.perf_counter()

    def tried(keep: Sequence[str]) -> Judged:
        try:
            half = HalfPrecision(keep)(model.clone()).model
        except UsageError:  # all of it is kept: that is no FP16 graph
            return Judged(passes=False, sqnr_db=-np.inf)
        with onnxruntime.open_model(half, str(graph)) as session:
            return judge(session)

    keep = tuple(given)
    found = tried(keep)
    if found.sqnr_db == -np.inf:
        keep = (*keep, *_beyond_the_end(graph, model, given, feeds))
        found = tried(keep)
        if found.passes:
            return Mend(keep_fp32=keep, sqnr_db=found.sqnr_db)
    most = int(SECONDS / max(time.perf_counter() - started, 1e-3))
    alone = {_pattern(part): tried((*keep, _pattern(part))) for part in _parts(model, most)}
    ranked = sorted(alone, key=lambda pattern: -alone[pattern].sqnr_db)[:MOST_KEPT]
    for count in range(1, len(ranked) + 1):
        chosen = (*keep, *ranked[:count])
        found = alone[ranked[0]] if count == 1 else tried(chosen)
        if found.passes:
            return Mend(keep_fp32=chosen, sqnr_db=found.sqnr_db)
    return None


def _beyond_the_end(graph: Path, model: ir.Model, given: Sequence[str], feeds: Collection[Feeds]) -> Iterator[str]:
    """The pattern of the modules that make or read what is too large for FP16; none where nothing is."""
    halving = HalfPrecision(given)
    halving(model.clone())
    try:
        report = measure_headroom(graph, halving.halved, feeds, "the failed inputs")
    except PrecisionError:  # not finite in FP32 either: it is not FP16's fault, and the reference is not finite
        return
    short = [row for row in report.tensors if row.headroom < MIN_HEADROOM]
    if short:
        yield modules_pattern(module for row in short for module in row.modules)


def _parts(model: ir.Model, most: int) -> list[str]:
    """Name what is kept as a whole: the units between skips.

    One that has most of the network is taken apart. Where there are more than ``most``, they are the modules around them, and
    the largest of those.
    """
    units = Counter(unit for unit in unit_of(model).values() if unit)
    modules = {module_of(node.name) for node in model.graph}
    parts: set[str] = set()
    asked = sorted(units)
    while asked:
        part = asked.pop()
        inside = {module for module in modules if module.startswith(f"{part}.")}
        if (
            inside
            and sum(times for unit, times in units.items() if f"{unit}.".startswith(f"{part}.")) > LARGE * units.total()
        ):
            asked += sorted({".".join(module.split(".")[: part.count(".") + 2]) for module in inside})
        else:
            parts.add(part)
    for depth in range(max((part.count(".") for part in parts), default=0), 0, -1):
        wider = {".".join(part.split(".")[:depth]) for part in parts}
        if len(parts) <= most or len(wider) < FEWEST:
            break
        parts = wider
    size = Counter(part for node in model.graph for part in parts if f"{module_of(node.name)}.".startswith(f"{part}."))
    return sorted(parts, key=lambda part: (-size[part], part))[: max(most, FEWEST)]


def _pattern(unit: str) -> str:
    return rf"^{re.escape(unit)}(\.|$)"

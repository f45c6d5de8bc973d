"""Steps 1 to 3 of ``skdeploy tune``: all ways are screened, the best of each cost judged, and the cheapest that holds wins."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from skdeploy.backends.onnxruntime import load_graph
from skdeploy.core.errors import CalibrationError, ParityError, PassError
from skdeploy.core.progress import Progress
from skdeploy.core.spec import ModelSpec
from skdeploy.planning.layers import fuse
from skdeploy.planning.plain import read_plain
from skdeploy.planning.recommend import WORTH, groups_left
from skdeploy.quant.units import Unit, all_but, units_of
from skdeploy.tuning.best import choose, holds
from skdeploy.tuning.candidates import Candidate
from skdeploy.tuning.judges import Judge
from skdeploy.tuning.options import TuneOptions
from skdeploy.tuning.report import Tried
from skdeploy.tuning.truth import Truth
from skdeploy.tuning.workshop import Workshop

SURVIVORS: Final = 3  # of each cost that run on all images that choose


class Inside(Progress):
    """Tells of one candidate; each note once."""

    def __init__(self, tell: Progress) -> None:
        self.tell, self.prefix = tell, ""
        self._said: set[str] = set()

    def update(self, detail: str) -> None:
        self.tell.update(f"{self.prefix}: {detail}" if self.prefix else detail)

    def note(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.tell.note(text)


@dataclass
class Sweep:
    """The ways tried until now, and what they are judged by."""

    shop: Workshop
    truth: Truth
    judged_by: Judge
    options: TuneOptions
    tell: Inside
    rows: list[Tried] = field(default_factory=list)

    @property
    def spec(self) -> ModelSpec:
        return self.shop.spec

    def screen(self, candidate: Candidate, words: str) -> Tried:
        self.tell.prefix = words
        self.tell.update("makes the graph")
        made = self.shop.make(candidate)
        decibels = self.judged_by.screened(made, candidate.name)
        return Tried(candidate=candidate, name=candidate.name, sqnr_db=decibels, int8_mac_share=made.int8_mac_share)

    def screen_all(self, ways: Sequence[Candidate]) -> list[Tried]:
        """A row for each way, with the reason where there is no such graph: FP16 holds no such step, or overflows."""
        rows: list[Tried] = []
        started = time.perf_counter()
        for number, way in enumerate(ways, 1):
            left = (time.perf_counter() - started) / max(1, number - 1) * (len(ways) - number + 1)
            words = f"{way.name}, {number} of {len(ways)}" + (f", about {left:,.0f} s left" if number > 1 else "")
            try:
                row = self.screen(way, words)
            except (CalibrationError, PassError, ParityError) as error:
                row = Tried(candidate=way, name=way.name, sqnr_db=0.0, int8_mac_share=0.0, refused=error.message)
            rows.append(row)
        return rows

    def judge(self, row: Tried, words: str) -> Tried:
        """The row with its figures on all images that choose."""
        self.tell.prefix = words
        made = self.shop.make(row.candidate)
        pair = self.judged_by.compared(made, "choosing", row.name)
        device = self.options.device
        predicted = None if device is None else self.shop.predicted_ms(made, device)
        return row.model_copy(update={"pair": pair, "predicted_ms": predicted})

    def kept(self, ways: Sequence[Candidate]) -> Iterator[Tried]:
        """Ways with more and more units kept, with their figures, each when it is asked for."""
        for count, way in enumerate(ways, 1):
            row = self.screen(way, f"{way.name}, step {count}")
            yield self.judge(row, f"{row.name} on all that choose")

    @cached_property
    def units(self) -> Mapping[str, tuple[Unit, tuple[str, ...]]]:
        """The units of the graph by name, each with the patterns of all others."""
        model = load_graph(self.shop.graph)
        return {unit.name: (unit, all_but(model, unit)) for unit in units_of(model, self.spec)}

    def alone(self, base: Candidate) -> dict[str, Candidate]:
        """``base`` with one unit in INT8 and all others kept, for each unit."""
        return {
            name: base.model_copy(update={"keep": others, "units": tuple(each for each in self.units if each != name)})
            for name, (_, others) in self.units.items()
        }

    def noises(self, base: Candidate) -> list[Tried]:
        """A row for each unit, named after it, of which nothing else of ``base`` is INT8."""
        ways = self.alone(base)
        return [
            self.screen(way, f"noise of {name}, {number} of {len(ways)}").model_copy(update={"name": name})
            for number, (name, way) in enumerate(ways.items(), 1)
        ]

    def judge_all(self, rows: Sequence[Tried]) -> list[Tried]:
        return [
            self.judge(row, f"{row.name} on all that choose, {number} of {len(rows)}")
            for number, row in enumerate(rows, 1)
        ]


class Rounds:
    """Who does the long steps: here this process, one way after the other. ``tune_shards.py`` has others do them."""

    def screened(self, sweep: Sweep, ways: Sequence[Candidate]) -> list[Tried]:
        """A row for each way."""
        return sweep.screen_all(ways)

    def judged(self, sweep: Sweep, rows: Sequence[Tried]) -> list[Tried]:
        """The rows with their figures on all images that choose."""
        return sweep.judge_all(rows)

    def noises(self, sweep: Sweep, base: Candidate) -> list[Tried]:
        """A row for each unit, of which nothing else of ``base`` is INT8."""
        return sweep.noises(base)

    def kept(self, sweep: Sweep, ways: Sequence[Candidate]) -> Iterator[Tried]:
        """Ways with units kept, and their figures, until nobody asks for another."""
        yield from sweep.kept(ways)


def best_of(sweep: Sweep, ways: Sequence[Candidate], rounds: Rounds) -> Tried:
    """Screens, judges what comes through, and goes on with kept units if nothing keeps the budget.

    Raises what the first way raised where none gives a graph.
    """
    sweep.rows = rounds.screened(sweep, ways)
    if all(row.refused for row in sweep.rows):
        sweep.screen(ways[0], ways[0].name)
    places = survivors(sweep.rows)
    for place, row in zip(places, rounds.judged(sweep, [sweep.rows[place] for place in places]), strict=True):
        sweep.rows[place] = row
    guessed = all(row.pair.guessing for row in sweep.rows if row.pair is not None)  # of FP32: units would not help
    if not guessed and not any(holds(row) for row in sweep.rows):
        base = max((row for row in sweep.rows if not row.refused), key=lambda row: row.sqnr_db)
        noises = rounds.noises(sweep, base.candidate)
        for row in rounds.kept(sweep, _with_units_kept(sweep, base.candidate, noises)):
            sweep.rows.append(row)
            if holds(row):
                break
    return _regrouped(sweep, choose([row for row in sweep.rows if row.pair is not None]))


def survivors(rows: Sequence[Tried]) -> list[int]:
    """The places of those that run on all images that choose: of each fallback, those with the highest SQNR."""
    by_cost: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if not row.refused:
            by_cost.setdefault(row.candidate.fallback, []).append(place)
    return [
        place
        for group in by_cost.values()
        for place in sorted(group, key=lambda place: -rows[place].sqnr_db)[:SURVIVORS]
    ]


def _with_units_kept(sweep: Sweep, base: Candidate, noises: Sequence[Tried]) -> list[Candidate]:
    """The candidate with the 1, 2, 4 ... units kept that alone bring most noise for what they compute."""
    noise = {row.name: 10 ** (-row.sqnr_db / 10) for row in noises}
    units: list[Unit] = [unit for unit, _ in sweep.units.values()]
    ranked = sorted(units, key=lambda unit: noise[unit.name] / unit.macs, reverse=True)
    found: list[Candidate] = []
    count = 1
    while count < len(ranked):
        kept = ranked[:count]
        found.append(
            base.model_copy(
                update={"keep": tuple(unit.pattern for unit in kept), "units": tuple(unit.name for unit in kept)}
            )
        )
        count *= 2
    return found


def _regrouped(sweep: Sweep, winner: Tried) -> Tried:
    """The winner with groups merged, if the planner finds that a tenth faster on the device: the function is the same."""
    device = sweep.options.device
    if device is None or winner.predicted_ms is None:
        return winner
    made = sweep.shop.make(winner.candidate)
    plain = read_plain(load_graph(made.path), made.path, 1, sweep.spec.one_size)
    best = winner
    for groups in groups_left(fuse(plain.model)):
        candidate = winner.candidate.model_copy(update={"regroup": groups})
        sweep.tell.prefix = candidate.name
        latency = sweep.shop.predicted_ms(sweep.shop.make(candidate), device)
        if latency < (1 - WORTH) * winner.predicted_ms and latency < (best.predicted_ms or latency):
            best = winner.model_copy(update={"candidate": candidate, "name": candidate.name, "predicted_ms": latency})
    if best is not winner:
        sweep.rows.append(best)
    return best


def measure_latency(sweep: Sweep) -> None:
    """Adds the latency on this machine of what came through the screening."""
    places = [place for place, row in enumerate(sweep.rows) if row.pair is not None]
    sweep.tell.prefix = ""
    sweep.tell.update("measures latency")
    graphs = [sweep.shop.make(sweep.rows[place].candidate) for place in places]
    for place, latency in zip(places, sweep.shop.measured_ms(graphs), strict=True):
        sweep.rows[place] = sweep.rows[place].model_copy(update={"measured_ms": latency})

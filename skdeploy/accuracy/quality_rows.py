"""The rows of pairs by each artifact, of which its figures are made: those of an earlier run where they hold, else new ones."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skdeploy.accuracy.kept import Kept
from skdeploy.accuracy.measures import Measure, Rows
from skdeploy.accuracy.reuse import CHECK_TOLERANCE, key_of, reads_of, tell_of_reuse
from skdeploy.accuracy.streaming import SAVE_SECONDS, TELL_SECONDS, bar
from skdeploy.backends.base import Array, Session
from skdeploy.backends.logits import check_outputs, run_batches
from skdeploy.bundle.runners import Runner
from skdeploy.core.errors import ParityError
from skdeploy.core.progress import Progress
from skdeploy.images.dataset import Pixels
from skdeploy.images.feeds import batches_of
from skdeploy.images.pairs import PairedData

LAYOUT: Final = 1  # of what is kept, and of how the measures are defined
CHECKED: Final = 4  # pairs of an earlier run that are measured again
UNTOUCHED: Final = "untouched "  # before a measure's name: its figure of the input itself


@dataclass
class PairRows:
    """Of the first ``done`` of N pairs, by measure, (N, columns): ``rows``. ``untouched``, (N,), of the first artifact only: of
    the inputs as they are, NaN where these have no such figure.
    """

    rows: dict[str, Rows]
    untouched: dict[str, NDArray[np.float64]]
    done: int = 0

    @property
    def columns(self) -> dict[str, NDArray[np.float64]]:
        """All by name, as they are kept."""
        return self.rows | {f"{UNTOUCHED}{name}": column for name, column in self.untouched.items()}


@dataclass(frozen=True)
class Measuring:
    """Pairs, cut as the spec of the first artifact says, and the measures that are taken of them. ``keeps``: rows stay in the
    user's cache folder.
    """

    opened: Sequence[tuple[Runner, Session]]
    pairs: PairedData
    measures: Sequence[Measure]
    batch: int
    tell: Progress
    keeps: bool = True

    def rows(self, *, fresh: bool = False, says: bool = True) -> tuple[list[PairRows], list[int]]:
        """The rows of each artifact, and how many of them an earlier run had made. ``fresh``: none. ``says``: a note says so.

        Raises UsageError for a pair that cannot be read or does not fit, ParityError for outputs that are not finite.
        """
        kept = [self._kept(n) for n in range(len(self.opened))]
        tables = [self.table(n) for n in range(len(self.opened))]
        if not fresh:
            for n, cache in enumerate(kept):
                if cache is not None:
                    self._take(n, cache, tables[n])
        reused = [table.done for table in tables]
        if says and self.keeps:
            tell_of_reuse([runner for runner, _ in self.opened], reused, len(self.pairs), self.tell, "pair")
        started = told = saved = time.perf_counter()
        first = min(reused)
        try:
            for start in range(first, len(self.pairs), self.batch):
                stop = min(start + self.batch, len(self.pairs))
                self._add(start, stop, tables)
                now = time.perf_counter()
                if now - told >= TELL_SECONDS:
                    told = now
                    self.tell.update(bar(stop, len(self.pairs), first, now - started, "pair"))
                if now - saved >= SAVE_SECONDS:
                    saved = now
                    self._save(kept, tables, reused)
        finally:
            self._save(kept, tables, reused)
        problem = next((cache.problem for cache in kept if cache is not None and cache.problem), "")
        if problem:
            self.tell.note(f"figures cannot be saved, so an interrupted run starts again: {problem}")
        return tables, reused

    def outputs(self, n: int, indices: Sequence[int]) -> dict[str, Array]:
        """The outputs of the n-th artifact for some pairs' inputs. Raises as ``rows``."""
        spec, kind = self.opened[0][0].spec, self.measures[0].kind
        return self._run(n, [self.pairs.crop(index, spec, kind) for index in indices], indices[0])

    def _kept(self, n: int) -> Kept | None:
        """Where its rows are kept; nowhere with code of the user's own, of which nobody knows whether it is what it was."""
        if not self.keeps or any(not measure.is_kept for measure in self.measures):
            return None
        runner = self.opened[n][0]
        read = reads_of(self.opened[0][0].spec)
        names = [[measure.name, measure.columns(runner.spec)] for measure in self.measures]
        samples = [self.pairs.inputs.digest, self.pairs.targets_digest, len(self.pairs), self.batch, read, names]
        return Kept(key_of(runner, ["pairs", LAYOUT, n == 0, *samples]))

    def table(self, n: int) -> PairRows:
        """The rows of the n-th artifact before any is made: NaN."""
        count, spec = len(self.pairs), self.opened[n][0].spec
        rows = {measure.name: np.full((count, measure.columns(spec)), np.nan) for measure in self.measures}
        return PairRows(rows, {} if n else {measure.name: np.full(count, np.nan) for measure in self.measures})

    def _save(self, kept: Sequence[Kept | None], tables: Sequence[PairRows], reused: Sequence[int]) -> None:
        for cache, table, before in zip(kept, tables, reused, strict=True):
            if cache is not None and table.done > before:
                cache.save(table.columns, table.done, {})

    def _take(self, n: int, cache: Kept, into: PairRows) -> None:
        """Fills ``into`` with what an earlier run measured, if a sample of it is measured alike now."""
        done, _, note = cache.load(into.columns)
        if note:
            self.tell.note(note)
        if not done:
            return
        differs = "" if done in (len(self.pairs), done // self.batch * self.batch) else "it does not end with a batch"
        if differs or (differs := self._differs(n, into, done)):
            self.tell.note(f"cannot use the figures of an earlier run, so all are made again: {cache.path}: {differs}")
            for column in into.columns.values():
                column[:] = np.nan
            return
        into.done = done

    def _differs(self, n: int, known: PairRows, done: int) -> str:
        """How some pairs, chosen at random, differ when they are measured again; empty if they do not."""
        for index in sorted(random.sample(range(done), min(CHECKED, done))):
            again = self.table(n)
            self._measure(n, range(index, index + 1), self._read(index, index + 1), again)
            for name, rows in again.rows.items():
                now, then = rows[index], known.rows[name][index]
                if not np.abs(now - then).max() <= CHECK_TOLERANCE * max(float(np.abs(now).max()), 1.0):
                    return f"{self.opened[n][0].name} gives another {name} for {self.pairs.name_of(index)} now"
        return ""

    def _read(self, start: int, stop: int) -> list[tuple[Pixels, NDArray[Any]]]:
        spec, kind = self.opened[0][0].spec, self.measures[0].kind
        return [self.pairs.read(index, spec, kind) for index in range(start, stop)]

    def _add(self, start: int, stop: int, tables: Sequence[PairRows]) -> None:
        """One batch, through the artifacts that have not had it."""
        read = self._read(start, stop)
        for n, table in enumerate(tables):
            if table.done <= start:
                self._measure(n, range(start, stop), read, table)
                table.done = stop

    def _measure(self, n: int, indices: range, read: Sequence[tuple[Pixels, NDArray[Any]]], into: PairRows) -> None:
        outputs = self._run(n, [crop for crop, _ in read], indices.start)
        spec = self.opened[n][0].spec
        for place, (index, (crop, target)) in enumerate(zip(indices, read, strict=True)):
            sample = {name: value[place] for name, value in outputs.items()}
            for measure in self.measures:
                into.rows[measure.name][index] = measure.of(sample, target, self.pairs.target_name(index), spec)
                if measure.name in into.untouched:
                    before = measure.untouched(crop, target)
                    into.untouched[measure.name][index] = np.nan if before is None else before

    def _run(self, n: int, crops: Sequence[Pixels], first: int) -> dict[str, Array]:
        runner, session = self.opened[n]
        parts: dict[str, list[Array]] = {}
        for outputs, count in _batches(session, crops, runner):
            problems = check_outputs(outputs, count, runner.spec)
            if problems:
                raise ParityError(
                    f"{runner.shown} gives no usable outputs for {self.pairs.name_of(first + _broken(outputs))}: {problems[0]}",
                    advice="check the artifact with `skdeploy verify`: the weights or the precision do not suit this image",
                )
            for name, value in outputs.items():
                parts.setdefault(name, []).append(value)
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def untouched_figures(table: PairRows) -> Mapping[str, float]:
    """The figures of all inputs as they are, for measures of which each input has one."""
    found = {name: values for name, values in table.untouched.items() if not np.isnan(values).any()}
    return {name: float(np.mean(values)) for name, values in found.items()}


def _broken(outputs: Mapping[str, Array]) -> int:
    """The place in a batch of the first sample with a value that is not finite."""
    floats = [value.reshape(len(value), -1) for value in outputs.values() if value.dtype.kind == "f" and value.size]
    rows = [int(np.argmin(np.isfinite(value).all(1))) for value in floats if not np.isfinite(value).all()]
    return min(rows, default=0)


def _batches(session: Session, crops: Sequence[Pixels], runner: Runner) -> Iterator[tuple[dict[str, Array], int]]:
    return run_batches(session, batches_of(crops, runner.spec, session.inputs, len(crops)))

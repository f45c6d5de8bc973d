"""Makes what is tried as an export does, by the same stations: ranges, kept for later runs, and graphs, which are not."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from skdeploy.accuracy.kept import cache_folder
from skdeploy.backends import DEFAULT
from skdeploy.bench.subjects import check_output, opened
from skdeploy.bench.timing import timed
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.runners import Runner, require_fp32_graph
from skdeploy.bundle.station_facts import Int8Facts
from skdeploy.core.errors import CalibrationError, SkdeployError
from skdeploy.core.files import written_whole
from skdeploy.core.progress import Progress
from skdeploy.core.spec import ModelSpec
from skdeploy.images.dataset import Dataset
from skdeploy.line.calibration import CalibrationOptions, CalibrationSet, calibration_set
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.station import Inputs
from skdeploy.line.stations.calibrate import Calibrate
from skdeploy.line.stations.int8 import Int8
from skdeploy.line.stations.regroup import Regrouped, RegroupOptions
from skdeploy.planning.report import plan
from skdeploy.quant.ranges import load_ranges
from skdeploy.tuning.candidates import Candidate

FOLDER: Final = "tuning"
KEPT: Final = 64  # files of ranges, some 100 kB each
BENCH_SECONDS: Final = 1.0  # of each graph


@dataclass(frozen=True)
class Made:
    """An INT8 graph, and the share of the multiply-accumulates that is INT8."""

    runner: Runner
    path: Path
    int8_mac_share: float


class Workshop:
    """``scratch`` gets the graphs. The bundle is read only."""

    def __init__(self, bundle: Bundle, calib: Path, number: int | None, scratch: Path, progress: Progress) -> None:
        self.fp32 = require_fp32_graph(bundle)
        self.graph = bundle.check(self.fp32)
        self.spec: ModelSpec = bundle.manifest.model
        self.calib, self.number, self.progress = calib, number, progress
        self._images: Dataset | None = None
        self._made: dict[str, Made] = {}
        self._bundle = Bundle(scratch, bundle.manifest.model_copy(update={"artifacts": (), "notes": ()}))
        folder = cache_folder()
        self._ranges = scratch if folder is None else folder.with_name(FOLDER)

    def ranges(self, candidate: Candidate) -> Path:
        """The ranges file of a candidate, made unless an earlier run has."""
        asked = candidate.options(self.calib, self.number)
        station = Calibrate(self._calibration(asked))
        inputs = Inputs(self.spec, {"graph": self.fp32}, {"graph": self.graph}, self.progress)
        path = self._ranges / f"{station.recipe(inputs, asked).key}.json"
        try:
            load_ranges(path)
        except CalibrationError:  # not there, or broken: made anew
            path = self._make(station, inputs, asked, path)
        return path

    def _make(self, station: Calibrate, inputs: Inputs, asked: CalibrationOptions, path: Path) -> Path:
        try:
            with written_whole(path) as partial:
                station.make(inputs, asked, partial)
        except (SkdeployError, OSError) as error:
            if path.parent == self._bundle.folder or isinstance(error, CalibrationError):
                raise
            # The cache takes no file: a run that is killed calibrates again.
            self.progress.note(f"ranges cannot be kept for a later run: {error}")
            self._ranges = self._bundle.folder
            return self._make(station, inputs, asked, self._ranges / path.name)
        _forget_oldest(path.parent)
        return path

    def _calibration(self, asked: CalibrationOptions) -> CalibrationSet:
        """The images are the same for all, and their digest, which takes a while, is taken once."""
        found = calibration_set(asked, self.spec)
        self._images = self._images or found.dataset
        return replace(found, dataset=self._images)

    def make(self, candidate: Candidate) -> Made:
        """The graph of a candidate. Raises CalibrationError, UsageError and PassError, as an export."""
        key = candidate.model_dump_json(exclude={"units"})
        if key not in self._made:
            self._made[key] = self._make_graph(candidate)
        return self._made[key]

    def _make_graph(self, candidate: Candidate) -> Made:
        path = self.ranges(candidate)
        inputs = Inputs(
            self.spec,
            {"graph": self.fp32, "ranges": self.fp32},
            {"graph": self.graph, "ranges": path},
            self.progress,
        )
        station, options = Int8(candidate.keep, ()), Int8Options(fallback=candidate.fallback)
        number = len(self._bundle.manifest.artifacts)
        recipe = replace(station.recipe(inputs, options), output=f"{number}.onnx")
        artifact = self._bundle.produce(recipe, lambda out: station.make(inputs, options, out))
        share = artifact.facts_as(Int8Facts).int8_macs
        if candidate.regroup is not None:
            artifact = self._regrouped(artifact, candidate.regroup)
        return Made(Runner(self._bundle, artifact, DEFAULT), self._bundle.path(artifact), share)

    def _regrouped(self, artifact: Artifact, groups: int) -> Artifact:
        station, options = Regrouped(), RegroupOptions(regroup=groups)
        inputs = Inputs(self.spec, {"graph": artifact}, {"graph": self._bundle.check(artifact)}, self.progress)
        recipe = station.recipe(inputs, options)
        return self._bundle.produce(recipe, lambda out: station.make(inputs, options, out))

    def predicted_ms(self, made: Made, device: str) -> float:
        """The planner's floor of a graph's latency on a device, batch 1."""
        size = self.spec.one_size
        kind: Any = {"sizes": size} if isinstance(size, dict) else {"size": size}
        found = plan(made.path, (device,), batch=1, **kind)
        floors = found.devices[0].floors
        return next(floor.latency_ms for floor in floors if floor.precision == found.precision)

    def measured_ms(self, graphs: Sequence[Made]) -> list[float]:
        """Median latency of graphs in turn on this machine, batch 1, as ``skdeploy bench`` runs them."""
        with ExitStack() as stack:
            subjects = [stack.enter_context(opened(made.runner, None, cuda_graph=False)) for made in graphs]
            feeds = [subject.feeds(1, 0) for subject in subjects]
            for subject, fed in zip(subjects, feeds, strict=True):
                check_output(subject, fed, 1)
            infers = [stack.enter_context(subject.infer(fed)) for subject, fed in zip(subjects, feeds, strict=True)]
            return [statistics.median(run.host_ms) for run in timed(infers, BENCH_SECONDS, lambda: None)]


def _forget_oldest(folder: Path) -> None:
    times: list[tuple[float, Path]] = []
    for file in folder.glob("*.json"):
        try:
            times.append((file.stat().st_mtime, file))
        except FileNotFoundError:  # another run has removed it
            continue
    for _, file in sorted(times)[:-KEPT]:
        file.unlink(missing_ok=True)

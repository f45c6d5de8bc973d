"""TensorRT-RTX engines of every card in FP32, FP16 and INT8: how long a build takes, and what it gives.

Makes docs/reference/engines.md.

Weights are the card's own, or random ones from seed 0. INT8 is calibrated on a few photographs, without equalizing and bias
correction, which change numbers but no layer: enough for the build, not for accuracy. Parity is not measured here.

Three builds of each precision, the precisions taking turns, all in one process; the judged one also in processes of its own,
where loading TensorRT-RTX is part of the build. The file is written after each card. A card that is in it is not measured again
as long as the card, the code that makes graphs and plans, the tools and the processor are the same.

    python benchmarks/engine_builds.py [--cards NAME ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import ROOT, describe
from skdeploy import engines
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import bundle_for_writing
from skdeploy.bundle.manifest import Manifest
from skdeploy.core.errors import SkdeployError
from skdeploy.core.files import digest_file, digest_json, write_text
from skdeploy.core.options import NoOptions
from skdeploy.core.packaged import packaged
from skdeploy.core.progress import Silent
from skdeploy.core.spec import INTERFACE, CalibrationMethod, ModelSpec, Precision
from skdeploy.engines._build import EngineReport
from skdeploy.engines.options import BatchProfile, BuildOptions
from skdeploy.images.dataset import photographs
from skdeploy.line.calibration import CalibrationOptions, CalibrationSet
from skdeploy.line.export import enter, first_graph
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.line import Line
from skdeploy.line.options import DEFAULT_PROFILE, ExportOptions
from skdeploy.line.sources import find_source
from skdeploy.line.stations.calibrate import Calibrate
from skdeploy.line.stations.half import Half, HalfOptions
from skdeploy.line.stations.int8 import Int8
from skdeploy.line.stations.simplify import Simplify
from skdeploy.quant.ranges import ALGORITHM_VERSION, Algorithm
from skdeploy.zoo.cards import read_card

RESULTS: Final = ROOT / "benchmarks" / "results" / "engine_builds.json"
MAKERS: Final = ("zoo", "graph", "quant", "engines")  # of skdeploy: what makes graphs and plans
BUILDS: Final = 3
IMAGES: Final = 4
AT_MOST_S: Final = 4.0  # of issue 6
JUDGED: Final = ("sknet50", "fp16")
CARD_SECONDS: Final = 35  # a first guess for two idle cores; what the cards took is used after the first


def cards() -> dict[str, ModelSpec]:
    """All that come with skdeploy, by name."""
    specs = (read_card(path) for path in packaged("models").rglob("*.toml"))
    return {spec.name: spec for spec in sorted(specs, key=lambda spec: spec.name)}


def card_digest(spec: ModelSpec) -> str:
    """Of the part of a card that its engines depend on."""
    return digest_json(spec.model_dump(mode="json", by_alias=True, include={"network", *INTERFACE}))


def circumstances() -> dict[str, Any]:
    """All else that a result depends on."""
    files = sorted(path for maker in MAKERS for path in (ROOT / "skdeploy" / maker).rglob("*.py"))
    machine = describe()
    return {
        "code": digest_json([digest_file(path) for path in files]),
        **{name: machine[name] for name in ("processor", "cores", "versions")},
        "profile": list(DEFAULT_PROFILE),
        "images": IMAGES,
        "builds": BUILDS,
    }


def graphs_of(name: str, folder: Path) -> tuple[list[tuple[str, Path, Artifact]], str]:
    """The FP32, FP16 and INT8 graph of a card, and where its weights come from."""
    options = ExportOptions(name)
    source = find_source(options)
    head = Manifest(
        skdeploy="benchmark",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=source.spec,
        weights=source.record,
        precision=Precision.FP32,
    )
    algorithm = Algorithm(
        method=CalibrationMethod.MSE, equalize=False, bias_correction=False, version=ALGORITHM_VERSION
    )
    images = CalibrationSet(photographs(IMAGES), IMAGES, algorithm)
    with bundle_for_writing(folder / "bundle", head) as bundle:
        line = Line(bundle, Silent())
        traced = first_graph(line, source, enter(line, source, options), options)
        model = line.run(Simplify(), NoOptions(), graph=traced)
        half = line.run(Half(), HalfOptions(), graph=model)
        ranges = line.run(Calibrate(images), CalibrationOptions(), graph=model)
        int8 = line.run(Int8((), ()), Int8Options(), graph=model, ranges=ranges)
        found = [(str(graph.precision), bundle.check(graph), graph) for graph in (model, half, int8)]
    return found, source.record.source


def build(graph: Path, folder: Path) -> EngineReport:
    """One engine, as ``skdeploy export`` builds it."""
    options = BuildOptions(profile=BatchProfile(*DEFAULT_PROFILE))
    return engines.build("tensorrt_rtx", graph, folder / "plan.engine", options, _untold)


def _untold(phase: str, fraction: float) -> None:
    del phase, fraction


def measure_card(name: str) -> dict[str, Any]:
    """Builds the three engines of a card, each three times."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        graphs, weights = graphs_of(name, folder)
        reports: dict[str, list[EngineReport]] = {precision: [] for precision, _, _ in graphs}
        for _ in range(BUILDS):
            for precision, path, _ in graphs:
                reports[precision].append(build(path, folder))
        engines = {precision: row(reports[precision], artifact) for precision, _, artifact in graphs}
        if name == JUDGED[0]:
            path = next(path for precision, path, _ in graphs if precision == JUDGED[1])
            engines[JUDGED[1]]["fresh_process_seconds"] = [fresh_process(path) for _ in range(BUILDS)]
    return {"weights": weights, "engines": engines}


def row(reports: Sequence[EngineReport], graph: Artifact) -> dict[str, Any]:
    """One row of the table, of several builds of one graph."""
    last = reports[-1]
    return {
        "seconds": round(statistics.median(report.seconds for report in reports), 2),
        "runs": [round(report.seconds, 2) for report in reports],
        "plan_bytes": last.plan_bytes,
        "activation_memory_bytes": last.activation_memory_bytes,
        "weights_memory_bytes": last.weights_memory_bytes,
        "layers": last.layers,
        "share_of_macs": last.proof.share_of_macs,
        "unproven": [layer.node for layer in last.proof.unproven],
        "log_warnings": list(last.log_warnings),
        "graph_sha256": graph.sha256,
    }


def fresh_process(graph: Path) -> float:
    """Seconds of a build in a process that has loaded nothing of TensorRT-RTX before."""
    command = [sys.executable, __file__, "--build-once", str(graph)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return round(float(done.stdout), 2)


def kept(path: Path, specs: Mapping[str, ModelSpec], now: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The cards of an earlier file that need no measuring: of the same cards, under the same circumstances."""
    if not path.is_file():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))["engine_builds"]
    if before["circumstances"] != now:
        return {}
    return {
        name: entry
        for name, entry in before["cards"].items()
        if name in specs and entry["card"] == card_digest(specs[name])
    }


def result(found: Mapping[str, Mapping[str, Any]], now: Mapping[str, Any]) -> dict[str, Any]:
    """What is written: the cards by name, and the limit of the issue."""
    judged = found[JUDGED[0]]["engines"][JUDGED[1]] if JUDGED[0] in found else None
    return {
        "circumstances": dict(now),
        "at_most_s": AT_MOST_S,
        "judged": {
            "engine": " ".join(JUDGED),
            "seconds": judged["seconds"],
            "slowest_in_a_fresh_process": max(judged["fresh_process_seconds"]),
            "reached": max(judged["seconds"], *judged["fresh_process_seconds"]) <= AT_MOST_S,
        }
        if judged
        else None,
        "above": [
            f"{name} {precision}"
            for name, entry in sorted(found.items())
            for precision, engine in entry["engines"].items()
            if engine["seconds"] > AT_MOST_S
        ],
        "cards": dict(sorted(found.items())),
    }


def measure(names: Sequence[str] = (), path: Path = RESULTS) -> dict[str, Any]:
    """Measures the cards that ``path`` lacks and writes it after each. Ends the process if one failed, after the others."""
    specs, now = cards(), circumstances()
    unknown = set(names) - set(specs)
    if unknown:
        raise SystemExit(f"no card named {', '.join(sorted(unknown))}; there are {', '.join(specs)}")
    found = kept(path, specs, now)
    todo = [name for name in names or specs if name not in found]
    print(f"{len(found)} cards are measured, {len(todo)} to do: about {_minutes(len(todo) * CARD_SECONDS)}", flush=True)
    started, failures = time.monotonic(), []
    for count, name in enumerate(todo, 1):
        try:
            entry = measure_card(name)
        except SkdeployError as error:
            failures.append(f"{name}: {error.message}")
            print(failures[-1], flush=True)
            continue
        found[name] = {"card": card_digest(specs[name]), "date": datetime.now(UTC).date().isoformat(), **entry}
        write_text(path, json.dumps({"machine": describe(), "engine_builds": result(found, now)}, indent=2) + "\n")
        times = ", ".join(f"{precision} {engine['seconds']} s" for precision, engine in entry["engines"].items())
        left = (time.monotonic() - started) / count * (len(todo) - count)
        print(f"{count}/{len(todo)} {name}: {times}; about {_minutes(left)} left", flush=True)
    if failures:
        raise SystemExit(f"{len(failures)} cards failed; the others are in {path}:\n" + "\n".join(failures))
    return result(found, now)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", nargs="+", metavar="NAME", default=[], help="all by default")
    parser.add_argument("--json", type=Path, default=RESULTS, help="the file that is read and written")
    parser.add_argument("--build-once", type=Path, metavar="GRAPH", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build_once:
        with TemporaryDirectory() as folder:
            started = time.perf_counter()  # before TensorRT-RTX is loaded, which EngineReport.seconds leaves out
            build(options.build_once, Path(folder))
            print(time.perf_counter() - started)
        return
    done = measure(options.cards, options.json)
    print(json.dumps({key: done[key] for key in ("judged", "above")}, indent=2))


if __name__ == "__main__":
    main()

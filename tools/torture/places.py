"""Every verb where it is not at home: a full disk, a read-only bundle, no temporary folder, seven runs beside it.

    python -m tools.torture.places [--seed N] [--rounds 1] [--place PLACE ...] [--verb VERB ...] [--json FILE]

Each must end by itself, with a documented exit code and without a traceback. The bundle must be valid afterwards; and where
what was wrong is mended, the same command must end well, with the files of an undisturbed run. Counts by place, verb and exit
code. The JSON grows by the visit, and a campaign that is stopped goes on from it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from threading import Lock
from typing import IO, Any, Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import ROOT, SKDEPLOY
from skdeploy.core import errors
from tools.torture.environment import PLACES, Place, unmount
from tools.torture.kills import DATA, broken, digests, make_start
from tools.torture.kills import VERBS as LONG
from tools.torture.record import Record

VERBS: Final[dict[str, tuple[str, ...]]] = {
    "doctor": ("doctor",),
    "models": ("models",),
    "convert": ("convert", "weights.pth", "--card", "tiny.toml", "-o", "converted.safetensors"),
    "init": ("init", "bundle/model.onnx", "-o", "first.toml"),
    **LONG,
    "inspect": ("inspect", "bundle"),
    "verify": ("verify", "bundle", "--images", "images.npz"),
    "plan": ("plan", "bundle", "--device", "orin-nano"),
    "bench": ("bench", "bundle", "--seconds", "0.2"),
    "predict": ("predict", "bundle", "image.png"),
    "report": ("report", "bundle"),
    "start": ("start", "--bundle", "bundle", "--cache", "engines", "--backend", "onnxruntime", "evaluate", *DATA),
}
MADE_ONCE: Final = {"convert": "converted.safetensors", "init": "first.toml"}  # these verbs replace no file
SECONDS: Final = (
    1200  # for one run; the longest takes 12 s alone, but eight are at work at once, on a machine that has other work
)
CODES: Final = {
    each.exit_code
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, errors.SkdeployError) and each.exit_code != 1
}
TRACES: Final = ("Traceback (most recent call last)", "Exception ignored", "Fatal Python error", "This is a bug")


@dataclass
class Found:
    """Of one place. ``visits``: of each verb; several runs may begin in one."""

    seconds: float = 0.0
    visits: Counter[str] = field(default_factory=Counter)
    ended: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    skipped: str = ""

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Found:
        if "skipped" in kept:
            return cls(skipped=kept["skipped"])
        ended = {verb: Counter(counts) for verb, counts in kept["ended"].items()}
        return cls(kept["seconds"], Counter(kept["visits"]), ended, list(kept["faults"]))

    def kept(self) -> dict[str, Any]:
        if self.skipped:
            return {"skipped": self.skipped}
        return {
            "runs": sum(sum(counts.values()) for counts in self.ended.values()),
            "visits": dict(self.visits),
            "seconds": round(self.seconds, 1),
            "ended": {verb: dict(sorted(counts.items())) for verb, counts in self.ended.items()},
            "faults": self.faults,
        }

    def add(self, visit: Found) -> None:
        self.seconds += visit.seconds
        self.visits += visit.visits
        for verb, counts in visit.ended.items():
            self.ended.setdefault(verb, Counter()).update(counts)
        self.faults += visit.faults


def around(place: Place, folder: Path, verb: str) -> tuple[list[str], dict[str, str]]:
    """The command in its place, and its variables."""
    words = [_renamed(word, place) for word in VERBS[verb]]
    variables = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "200"}
    for name, value in place.variables.items():
        variables.pop(name, None)
        if value is not None:
            variables[name] = str(folder / value) if (folder / value).exists() else value
    return ["sh", "-c", place.script, "sh", str(SKDEPLOY), *words], variables


def _renamed(word: str, place: Place) -> str:
    first, slash, rest = word.partition("/")
    return place.renamed.get(first, first) + slash + rest


def runs(place: Place, folder: Path, verbs: Sequence[str], moment: float, random: Random) -> list[tuple[int, str]]:
    """Exit code and stderr of commands that begin at once. A code of 1000 is a run that did not end."""
    begun: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
    for verb in verbs:
        command, variables = around(place, folder, verb)
        said: IO[bytes] = (folder.parent / f"{folder.name}-{len(begun)}.txt").open("w+b")
        begun.append(
            (subprocess.Popen(command, cwd=folder, env=variables, stdout=subprocess.DEVNULL, stderr=said), said)
        )
    if place.meanwhile is not None:
        time.sleep(moment)
        place.meanwhile(folder, random)
    ends = []
    for process, said in begun:
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = 1000
        with said:
            said.seek(0)
            ends.append((code, said.read().decode(errors="replace")))
    return ends


def problems(place: Place, code: int, said: str) -> str:
    """What is wrong with how a run ended; empty for nothing."""
    if code == 1000:
        return f"has not ended after {SECONDS} s"
    if code not in {0, *CODES}:
        return f"exit code {code}: {said.strip()[-400:]}"
    if trace := next((trace for trace in TRACES if trace in said), ""):
        return f"{trace}: {said.strip()[-400:]}"
    if code and place.works:
        return f"exit code {code} where it should work: {said.strip()[-400:]}"
    return ""


def visit(start: Path, folder: Path, name: str, verb: str, seed: int, undisturbed: Undisturbed) -> Found:
    """One verb in one place."""
    place, random, found = PLACES[name], Random(f"{seed}/{name}/{verb}"), Found(visits=Counter({verb: 1}))
    began = time.perf_counter()
    shutil.copytree(start, folder)
    for old, new in place.renamed.items():
        (folder / old).rename(folder / new)
    verbs = [verb] * random.randint(*place.crowd)
    if place.mixed:
        verbs[1:] = [random.choice(place.verbs) for _ in verbs[1:]]
    try:
        if place.prepare is not None:
            place.prepare(folder, random)
        ends = runs(place, folder, verbs, random.uniform(0.2, undisturbed.seconds[verb]), random)
        for each, (code, said) in zip(verbs, ends, strict=True):
            found.ended.setdefault(each, Counter())[str(code)] += 1
            if problem := problems(place, code, said):
                found.faults.append(f"{each}: {problem}")
        if place.mend is not None:
            place.mend(folder)
        for old, new in place.renamed.items():
            (folder / new).rename(folder / old)
        if folder.exists() and (problem := broken(folder)):
            found.faults.append(f"{verb}: afterwards: {problem}")
        if place.works and not place.renamed and digests(folder) != undisturbed.digests[verb]:
            found.faults.append(f"{verb}: other files than where nothing is wrong")
        if place.again:
            (folder / MADE_ONCE.get(verb, "none")).unlink(missing_ok=True)
            ((code, said),) = runs(Place(), folder, [verb], 0.0, random)
            if code != undisturbed.codes[verb]:
                found.faults.append(f"{verb}: run again where nothing is wrong: {code}: {said.strip()[-400:]}")
            elif not place.mixed and digests(folder) != undisturbed.digests[verb]:
                found.faults.append(f"{verb}: run again, other files than without a disturbance")
            if left := [path.name for path in folder.rglob("*.partial")]:
                found.faults.append(f"{verb}: {left[0]} is left")
    finally:
        unmount(folder)
        shutil.rmtree(folder, ignore_errors=True)
    found.seconds = time.perf_counter() - began
    return found


@dataclass
class Undisturbed:
    """Of each verb where nothing is wrong."""

    seconds: dict[str, float] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    digests: dict[str, dict[str, str]] = field(default_factory=dict)

    def measure(self, start: Path, folder: Path, verb: str) -> None:
        shutil.copytree(start, folder)
        began = time.perf_counter()
        ((code, said),) = runs(Place(), folder, [verb], 0.0, Random(0))
        if problem := problems(Place(works=True), code, said):
            raise RuntimeError(f"{verb} where nothing is wrong: {problem}")
        self.seconds[verb], self.codes[verb] = time.perf_counter() - began, code
        self.digests[verb] = digests(folder)
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--place", action="append", choices=list(PLACES), help="only these")
    parser.add_argument("--verb", action="append", choices=list(VERBS), help="only these")
    parser.add_argument("--rounds", type=int, default=1, help="of every verb in every place")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the counts here too")
    options = parser.parse_args()
    _in_mounts_of_its_own()
    places, verbs = options.place or list(PLACES), options.verb or list(VERBS)
    record = Record(options.json, "places", count, options.seed)
    kept = {name: Found.of(each) for name, each in record.found.get("places", {}).items()}
    found = {name: kept.get(name, Found()) for name in PLACES if name in kept or name in places}
    lock = Lock()

    def result() -> dict[str, Any]:
        return {"places": {name: each.kept() for name, each in found.items()}}

    (ROOT / "build").mkdir(exist_ok=True)
    # Not in the temporary folder: one place has none.
    with TemporaryDirectory(dir=ROOT / "build", prefix="places-") as scratch:
        os.chmod(scratch, 0o755)  # noqa: PTH101  (for a stranger)
        start, undisturbed = Path(scratch) / "start", Undisturbed()
        make_start(start)

        def one(turn: tuple[str, str, int]) -> None:
            name, verb, number = turn
            folder = Path(scratch) / f"{list(PLACES).index(name)}-{verb}-{number}"
            made = visit(start, folder, name, verb, options.seed + number, undisturbed)
            for fault in made.faults:
                print(f"{name}: {fault}", file=sys.stderr, flush=True)
            with lock:
                found[name].add(made)
                record.save(result())

        for name in places:
            needs = PLACES[name].needs
            found[name].skipped = needs() if needs is not None else ""
        with ThreadPoolExecutor(options.processes) as pool:
            for verb in verbs:  # so that a campaign that is stopped has been everywhere with some verbs
                turns = [
                    (name, verb, number)
                    for number in range(options.rounds)
                    for name in places
                    if not found[name].skipped and verb in (PLACES[name].verbs or verbs)
                    if found[name].visits[verb] <= number
                ]
                if turns:
                    undisturbed.measure(start, Path(scratch) / f"first-{verb}", verb)
                    list(pool.map(one, turns))
    print(json.dumps(result(), indent=2))
    if failed := sum(len(each.faults) for each in found.values()):
        sys.exit(f"{failed} faults")


def count(found: Mapping[str, Any]) -> int:
    """The runs in all places; one that cannot be had here has none."""
    return sum(place.get("runs", 0) for place in found["places"].values())


def _in_mounts_of_its_own() -> None:
    """Begins again in a mount namespace, which takes its mounts with it."""
    if os.environ.pop("SKDEPLOY_TORTURE_MOUNTS", ""):
        return
    os.environ["SKDEPLOY_TORTURE_MOUNTS"] = "1"
    mapped = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    again = [sys.executable, "-m", "tools.torture.places", *sys.argv[1:]]
    os.execvp("unshare", ["unshare", *mapped, "--mount", *again])


if __name__ == "__main__":
    main()

"""Damaged files by the thousand: every one must be read, or refused with an error that explains it.

    python -m tools.torture [--inputs 20000] [--seed N] [--kind KIND ...] [--json FILE]

Counts by kind and exit code; a traceback, a hang, a crash or more than 2 GiB fails the run, and the input is kept. The JSON
grows by the kind, and a campaign that is stopped goes on from it; kinds with faults are tried again.
"""

from __future__ import annotations

import argparse
import json
import select
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import ROOT
from tools.torture.readers import KINDS, make_seeds
from tools.torture.record import Record
from tools.torture.worker import damaged

SECONDS: Final = 20  # for one input; the slowest good one takes a tenth of that beside others
START_SECONDS: Final = 120  # for a process, until it reads the first


def campaign(seeds: Path, name: str, seed: int, count: int, kept: Path) -> dict[str, Any]:
    """All inputs of one kind. A process that dies is replaced, and goes on behind the input that ended it."""
    counts: Counter[str] = Counter()
    faults: list[dict[str, Any]] = []
    first, started = 0, time.perf_counter()
    while first < count:
        for index, answer in _answers(seeds, name, seed, first, count - first):
            said = answer
            if said == "hang":  # or everything was stopped for a while: it hangs in a process of its own, too
                ((_, said),) = _answers(seeds, name, seed, index, 1)
            word = said.split(" ")[0]
            counts[said if word == "refused" else word] += 1
            if word not in ("read", "refused"):
                faults.append({"index": index, "ended": said})
                kept.mkdir(parents=True, exist_ok=True)
                content = damaged(KINDS[name], (seeds / KINDS[name].file).read_bytes(), seed, index)
                (kept / f"{name.replace(' ', '-')}-{seed}-{index}{Path(KINDS[name].file).suffix}").write_bytes(content)
            first = index + 1
    return {
        "inputs": count,
        "seconds": round(time.perf_counter() - started, 1),
        "ended": dict(sorted(counts.items())),
        "faults": faults[:20],
    }


def _answers(seeds: Path, name: str, seed: int, first: int, count: int) -> Any:
    """(index, how it ended) of one process's inputs, up to the one that ends the process."""
    command = [sys.executable, "-m", "tools.torture.worker", str(seeds), name, *map(str, (seed, first, count))]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
    assert process.stdout is not None
    rest, now, limit, begun = b"", first, START_SECONDS, False
    try:
        while True:
            if not select.select([process.stdout], [], [], limit)[0]:
                yield now, "hang"
                return
            got = process.stdout.read(1 << 16)
            if not got:
                break
            *lines, rest = (rest + got).split(b"\n")
            for line in lines:
                word, _, said = line.decode(errors="replace").partition(" ")
                if word == "good":
                    raise RuntimeError(f"the good {name} is not read: {said}")
                number, _, ended = said.partition(" ")
                now, limit, begun = int(number), SECONDS, True
                if word == "end":
                    yield now, ended
                    now += 1
        code = process.wait()
        if not begun:
            raise RuntimeError(f"a process for {name} ended with {code} before it read anything")
        if now < first + count:
            yield now, f"crash {code}"
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only these")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the counts here too")
    parser.add_argument("--keep", type=Path, default=Path("build/torture"), help="for the inputs that fail")
    options = parser.parse_args()
    names = options.kind or list(KINDS)
    with TemporaryDirectory() as scratch:
        seeds = Path(scratch) / "seeds"
        make_seeds(seeds)
        each = -(-options.inputs // len(names))
        record, lock = Record(options.json, "damaged_files", itemgetter("inputs"), options.seed), Lock()
        kept = record.found.get("kinds", {})
        found = {name: run for name, run in kept.items() if run["inputs"] == each and not run["faults"]}
        record.forget(sum(run["inputs"] for name, run in kept.items() if name not in found))

        def result() -> dict[str, Any]:
            kinds = {name: found[name] for name in KINDS if name in found}
            return {"inputs": sum(run["inputs"] for run in kinds.values()), "kinds": kinds}

        def one(name: str) -> None:
            made = campaign(seeds, name, options.seed, each, options.keep)
            with lock:
                found[name] = made
                record.save(result())

        with ThreadPoolExecutor(options.processes) as pool:
            list(pool.map(one, [name for name in names if name not in found]))
    print(json.dumps(result(), indent=2))
    if failed := sum(len(run["faults"]) for run in found.values()):
        sys.exit(f"{failed} inputs ended neither read nor refused; they are in {options.keep}")


if __name__ == "__main__":
    main()

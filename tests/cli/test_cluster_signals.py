"""SIGTERM and Ctrl-C in a run with workers: its own exit code, no worker left, no half part, and the next run goes on."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.evaluation_data import labelled
from tests.cli.signals import signalled, started
from tests.shards.clusters import START_SECONDS, wait_for_parts, workers_of

IMAGES = 512
SHARDS = 16


@pytest.fixture
def command(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = labelled(bundle, tmp_path / "evaluation.npz", IMAGES)
    return [sys.executable, "-m", "skdeploy", "evaluate", str(bundle), "--data", str(data), "--json"]


def told(folder: Path) -> bool:
    """Whether all parts are there: the run is about to end, and its exit code may be of either."""
    return len(list((folder / "cache").rglob("part-*"))) == SHARDS


def figures(out: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(out).items() if key not in ("seconds", "reused")}


def test_sigterm_ends_the_workers_and_keeps_the_parts(command: list[str], tmp_path: Path) -> None:
    process = started(command, "--workers", "2")
    wait_for_parts(tmp_path / "cache", 2, process)
    signalled(process, signal.SIGTERM, tmp_path)
    assert 2 <= len(list((tmp_path / "cache").rglob("part-*"))) < SHARDS


@pytest.mark.slow
def test_the_next_run_makes_only_what_is_missing(command: list[str], tmp_path: Path) -> None:
    process = started(command, "--workers", "2")
    wait_for_parts(tmp_path / "cache", 2, process)
    signalled(process, signal.SIGTERM, tmp_path)
    before = {part: part.stat().st_mtime_ns for part in (tmp_path / "cache").rglob("part-*")}
    again = subprocess.run([*command, "--workers", "1"], capture_output=True, text=True, check=True)
    assert f"{len(before)} of {SHARDS} shards of an earlier run are reused" in again.stderr
    assert {part: part.stat().st_mtime_ns for part in before} == before
    assert figures(again.stdout)["images"] == IMAGES


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_workers_start_ends_them(command: list[str], tmp_path: Path, sent: signal.Signals) -> None:
    """Dask alone ends with an assertion: it cannot close a cluster whose workers are about to start."""
    process = started(command, "--workers", "2")
    limit = time.monotonic() + START_SECONDS
    while not workers_of(process.pid):
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < limit, "no worker started"
        time.sleep(0.01)
    signalled(process, sent, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_any_moment_loses_nothing(command: list[str], tmp_path: Path, sent: signal.Signals) -> None:
    whole = figures(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    begun = time.monotonic()
    subprocess.run([*command, "--workers", "2", "--fresh"], capture_output=True, check=True)
    length, chance = time.monotonic() - begun, random.Random(16)
    for _ in range(10):
        process = started(command, "--workers", "2", "--fresh")
        time.sleep(chance.uniform(0.5, length))  # Python itself takes 0.3 s until it has a handler
        if process.poll() is None and not told(tmp_path):
            signalled(process, sent, tmp_path)
        else:
            assert figures(process.communicate()[0]) == whole
    again = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True, check=True)
    assert figures(again.stdout) == whole


@pytest.mark.slow
def test_a_worker_that_sigterm_ends_is_replaced(command: list[str], tmp_path: Path) -> None:
    """As Kubernetes and Slurm end a worker that they need elsewhere."""
    whole = figures(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    process = started(command, "--workers", "2")
    wait_for_parts(tmp_path / "cache", 2, process)
    workers_of(process.pid)[0].terminate()
    out, err = process.communicate(timeout=START_SECONDS)
    assert process.returncode == 0, err
    assert figures(out) == whole

"""The process that workers are forked from."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest

from skdeploy.core.progress import Silent
from skdeploy.shards.cluster import Cluster, run_shards
from skdeploy.shards.local import SOCKET_PATH
from skdeploy.shards.part import read_part
from skdeploy.shards.shard import Shard
from tests.shards.clusters import make_part

# The child prints what it got from the fork server, and what that server is.
CHILD = """
import os, signal, sys
print(*(name in sys.modules for name in ("skdeploy.accuracy.evaluate_cluster", "onnx_ir", "distributed")))
print(os.environ["OPENBLAS_NUM_THREADS"], signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
status = open(f"/proc/{os.getppid()}/status").read()
print(next(line for line in status.splitlines() if line.startswith("Threads:")).split())
"""
PARENT = f"""
import multiprocessing, os
from skdeploy.shards.cluster import Cluster
Cluster(workers=1).begin("skdeploy.accuracy.evaluate_cluster")
child = multiprocessing.get_context("forkserver").Process(target=exec, args=({CHILD!r},))
child.start()
child.join()
print(os.environ.get("OPENBLAS_NUM_THREADS"))
"""


def test_workers_come_with_their_imports_from_a_process_of_one_thread() -> None:
    """A fork has only the thread that forked, and locks of the others would stay locked in it."""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", PARENT], capture_output=True, text=True, check=True, timeout=300, env=environment
    )
    assert done.stdout.splitlines() == ["True True True", "1 True", "['Threads:', '1']", "None"]


def test_workers_start_where_the_path_of_temporary_files_is_too_long_for_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * SOCKET_PATH)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    cluster, shard = Cluster(workers=1), Shard(1, 1)
    cluster.begin(__name__)
    run_shards(cluster, partial(make_part, 0.0), {shard: 10}, lambda _: tmp_path / "part", Silent())
    assert read_part(tmp_path / "part").header.shard == shard

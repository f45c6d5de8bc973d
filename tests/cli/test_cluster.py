"""``evaluate`` on workers of this machine and of a real Dask cluster: the same bits, whatever is killed on the way."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli.evaluation_data import labelled
from tests.ports import free_port
from tests.shards.clusters import dask_cluster, end, wait_for_parts, workers_of

IMAGES = 1500  # 47 shards
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def many(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled(exported, tmp_path_factory.mktemp("many") / "evaluation.npz", IMAGES)


@pytest.fixture
def start(bundle: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """``skdeploy evaluate`` in a process of its own, as workers are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code = "import skdeploy.shards.cluster as c; c.CONNECT_SECONDS = 3.0; from skdeploy.__main__ import main; main()"

    def run(*options: object, **given: Any) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-c",
            f"if __name__ == '__main__': {code}",
            "evaluate",
            bundle,
            "--data",
            many,
            *options,
        ]
        return subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **given
        )

    return run


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """What it printed."""
    try:
        out, err = process.communicate(timeout=180)
    finally:
        end(process.pid)
    assert process.returncode == code, err
    return out, err


def figures(out: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(out).items() if key not in ("seconds", "reused")}


@pytest.fixture(scope="module")
def expected(exported: Path, many: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of one run."""
    folder = tmp_path_factory.mktemp("alone")
    bundle = shutil.copytree(exported, folder / "bundle")
    command = [sys.executable, "-m", "skdeploy", "evaluate", str(bundle), "--data", str(many), "--json"]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return figures(done.stdout)


def test_a_killed_worker_is_replaced_and_nothing_listens_beyond_this_machine(
    start: Start, expected: dict[str, Any], tmp_path: Path
) -> None:
    process = start("--workers", 2, "--json")
    wait_for_parts(tmp_path / "cache", 3, process)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    sockets = [each for one in (psutil.Process(process.pid), *workers) for each in one.net_connections("inet")]
    listening = {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    workers[0].kill()
    assert figures(ended(process)[0]) == expected


def test_a_killed_run_goes_on_where_it_was_and_counts_nothing_twice(
    start: Start, expected: dict[str, Any], tmp_path: Path
) -> None:
    process = start("--workers", 2, "--json")
    wait_for_parts(tmp_path / "cache", 3, process)
    workers = workers_of(process.pid)
    process.kill()
    process.communicate()
    limit = time.monotonic() + 60
    while any(worker.is_running() for worker in workers) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not any(worker.is_running() for worker in workers)  # they end by themselves
    out, err = ended(start("--workers", 1, "--json"))
    assert "of 47 shards of an earlier run are reused" in err
    assert figures(out) == expected
    out, err = ended(start("--workers", 1, "--json"))
    assert "47 of 47 shards of an earlier run are reused" in err
    assert figures(out) == expected


def small_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


def test_a_full_disk_ends_in_an_error_and_the_next_run_is_right(start: Start, expected: dict[str, Any]) -> None:
    _, err = ended(start("--workers", 1, preexec_fn=small_disk), code=9)
    assert "no space left to write" in err
    assert figures(ended(start("--workers", 1, "--json"))[0]) == expected


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_scheduler_that_ends_is_an_error_and_another_one_goes_on(
    start: Start, expected: dict[str, Any], tmp_path: Path, sent: signal.Signals
) -> None:
    port = free_port()
    with dask_cluster(tmp_path, port) as scheduler:
        process = start("--cluster", f"tcp://127.0.0.1:{port}")
        wait_for_parts(tmp_path / "cache", 3, process)
        scheduler.send_signal(sent)
        _, err = ended(process, code=3)
    assert f"the scheduler tcp://127.0.0.1:{port} is lost" in err
    assert "Traceback" not in err
    with dask_cluster(tmp_path, port):
        out, err = ended(start("--cluster", f"tcp://127.0.0.1:{port}", "--json"))
    assert "shards of an earlier run are reused" in err
    assert figures(out) == expected


@pytest.mark.slow
def test_an_encrypted_cluster_takes_its_certificate_and_nothing_else(
    start: Start, expected: dict[str, Any], tmp_path: Path
) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*made, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    port = free_port()
    files = ["--tls-ca-file", str(cert), "--tls-cert", str(cert), "--tls-key", str(key)]
    mine = ("--cluster-tls-ca", cert, "--cluster-tls-cert", cert, "--cluster-tls-key", key)
    with dask_cluster(tmp_path, port, files):
        out, _ = ended(start("--cluster", f"tls://127.0.0.1:{port}", *mine, "--json"))
        assert figures(out) == expected
        _, err = ended(start("--cluster", f"tcp://127.0.0.1:{port}", "--fresh"), code=3)
        assert "no Dask scheduler answers" in err


def test_an_address_that_does_not_answer_is_an_error_within_seconds(start: Start) -> None:
    port = free_port()
    begun = time.monotonic()
    _, err = ended(start("--cluster", f"tcp://127.0.0.1:{port}"), code=3)
    assert f"no Dask scheduler answers at tcp://127.0.0.1:{port} within 3 s" in err
    assert time.monotonic() - begun < 60


def test_a_worker_that_sees_another_bundle_is_refused(
    start: Start, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skdeploy.accuracy.evaluate import EvaluationOptions
    from skdeploy.accuracy.evaluate_cluster import part_of_worker
    from skdeploy.accuracy.evaluate_shards import evaluation_job
    from skdeploy.core.errors import UsageError
    from skdeploy.core.progress import Silent
    from skdeploy.shards.shard import Shard

    options = EvaluationOptions(labelled(bundle, tmp_path / "few.npz"))
    job, _, _ = evaluation_job(bundle, options, Silent())
    other = job.model_copy(update={"made_of": dict.fromkeys(job.made_of, "0" * 64)})
    with pytest.raises(UsageError, match="this worker's share was made of another bundle"):
        part_of_worker(bundle, options, other, Shard(1, 1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--workers", "0"), "--workers 0: must be from 1"),
        (("--workers", "2", "--cluster", "tcp://x:1"), "cannot be used together"),
        (("--workers", "2", "--shard", "1/2", "-o", "part"), "leave --shard and --parts out"),
        (("--cluster", "tls://x:1"), "an encrypted cluster needs"),
        (
            ("--workers", "2", "--cluster-tls-ca", "x", "--cluster-tls-cert", "x", "--cluster-tls-key", "x"),
            "require --cluster",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(start: Start, options: tuple[str, ...], words: str) -> None:
    assert words in ended(start(*options), code=2)[1]

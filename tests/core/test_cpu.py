"""A CPU quota is found in the files of both versions of control groups, and in the kernel's own where root may make a group."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skdeploy.backends import onnxruntime
from skdeploy.core import cpu

V1 = "5:cpu,cpuacct:{path}\n3:memory:/elsewhere\n1:name=systemd:/\n"
V2 = "0::{path}\n"
ELSEWHERE = "22 1 0:20 / /proc rw - proc proc rw\n"  # what is no control group is passed over
PRINT = "from skdeploy.core import cpu; print(cpu.affinity(), cpu.quota_of(), cpu.cores(), cpu.thread_limit())"

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """The files of a process in the group ``path``: those that the kernel would show, with these quotas by folder."""

    def build(version: int, path: str, quotas: dict[str, str], *, root: str = "/", name: str = "cg") -> Path:
        top = tmp_path / name
        for folder, quota in quotas.items():
            (top / folder).mkdir(parents=True, exist_ok=True)
            if version == 2:
                (top / folder / "cpu.max").write_text(f"{quota} 100000\n")
            else:
                (top / folder / "cpu.cfs_quota_us").write_text(f"{'-1' if quota == 'max' else quota}\n")
                (top / folder / "cpu.cfs_period_us").write_text("100000\n")
        process = tmp_path / "process"
        process.mkdir()
        (process / "cgroup").write_text((V2 if version == 2 else V1).format(path=path))
        shown = str(top).replace(" ", "\\040")
        kind = "cgroup2 cgroup rw" if version == 2 else "cgroup cgroup rw,cpu,cpuacct"
        (process / "mountinfo").write_text(f"{ELSEWHERE}32 31 0:29 {root} {shown} rw,relatime shared:9 - {kind}\n")
        return process

    return build


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("quotas", "found"),
    [
        ({"a/b": "150000"}, 1.5),
        ({"a/b": "max"}, None),
        ({"a": "50000", "a/b": "300000"}, 0.5),  # the group above binds too
        ({"a": "300000", "a/b": "50000"}, 0.5),
        ({}, None),
    ],
)
def test_the_least_quota_on_the_way_up_holds(
    version: int, quotas: dict[str, str], found: float | None, tree: Tree
) -> None:
    assert cpu.quota_of(tree(version, "/a/b", quotas)) == found


@pytest.mark.parametrize("version", [1, 2])
def test_in_a_container_its_own_group_is_the_mounts_root(version: int, tree: Tree) -> None:
    """Docker shows a container the host's path, of which only the last folder is mounted there."""
    assert cpu.quota_of(tree(version, "/docker/4f", {"": "200000"}, root="/docker/4f")) == 2


@pytest.mark.parametrize("path", ["/docker/4fff", "/../4f"])
def test_a_path_that_the_mount_does_not_show_is_its_root(path: str, tree: Tree) -> None:
    assert cpu.quota_of(tree(2, path, {"": "200000", "ff": "100000"}, root="/docker/4f")) == 2


def test_a_folder_with_a_space_is_found(tree: Tree) -> None:
    assert cpu.quota_of(tree(2, "/a", {"a": "200000"}, name="control groups")) == 2


def test_without_proc_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu.quota_of(tmp_path) is None


@pytest.mark.parametrize(
    ("allowed", "quota", "cores", "limit"),
    [(8, None, 8, None), (8, 2.9, 2, 2), (8, 0.5, 1, 1), (2, 4.0, 2, None), (1, 0.5, 1, None)],
)
def test_threads_are_as_many_as_both_limits_leave(
    allowed: int, quota: float | None, cores: int, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "affinity", lambda: allowed)
    monkeypatch.setattr(cpu, "quota_of", lambda: quota)
    assert (cpu.cores(), cpu.thread_limit()) == (cores, limit)


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of our own with half a core."""
    v1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    v2 = Path("/sys/fs/cgroup/cgroup.subtree_control")
    if not v1.exists() and not (v2.exists() and "cpu" in v2.read_text().split()):
        pytest.skip("no control groups with a CPU quota here")
    folder = (v1 if v1.exists() else v2).parent / f"skdeploy-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    if v1.exists():
        (folder / "cpu.cfs_period_us").write_text("100000")
        (folder / "cpu.cfs_quota_us").write_text("50000")
    else:
        (folder / "cpu.max").write_text("50000 100000")
    yield folder
    folder.rmdir()


def in_group(group: Path, code: str) -> str:
    """What a Python in this group prints, which may run on two cores."""
    processes = next(name for name in ("cgroup.procs", "tasks") if (group / name).exists())
    enter = f"open({str(group / processes)!r}, 'w').write('0')\n"  # 0 is who writes it
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", enter + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_quota_of_the_kernel_limits_every_runtime(group: Path) -> None:
    if cpu.affinity() < 2:
        pytest.skip("one core: no quota could leave less")
    code = (
        f"{PRINT}\n"
        "import torch; print(torch.get_num_threads())\n"
        "from skdeploy.backends import onnxruntime; print(onnxruntime.probe().device)\n"
    )
    first, threads, device = in_group(group, code).splitlines()
    assert first == f"{cpu.affinity()} 0.5 1 1"
    assert threads == "1"
    assert device == "CPU, 1 threads"


@pytest.mark.parametrize(("asked", "limit", "given"), [(None, None, 0), (None, 3, 3), (2, 3, 2)])
def test_a_session_gets_what_was_asked_for_then_the_quota_then_its_own_choice(
    asked: int | None, limit: int | None, given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedError(Exception):
        pass

    def create(_ort: object, _source: object, options: Any, *_: object) -> None:
        threads.append(options.intra_op_num_threads)  # 0 is ONNX Runtime's own choice
        raise StoppedError

    threads = list[int]()
    monkeypatch.setattr(cpu, "thread_limit", lambda: limit)
    monkeypatch.setattr(onnxruntime, "_create", create)
    with pytest.raises(StoppedError):
        onnxruntime.OnnxRuntimeSession(b"", "cpu", asked)
    assert threads == [given]


def test_two_jobs_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cores", lambda: 9)
    monkeypatch.setattr(cpu, "affinity", lambda: 9)
    assert cpu.thread_limit() is None
    with cpu.shared():
        assert cpu.thread_limit() == 4
        with cpu.shared():
            monkeypatch.setattr(cpu, "cores", lambda: 1)
            assert cpu.thread_limit() == 1
    monkeypatch.setattr(cpu, "cores", lambda: 9)
    assert cpu.thread_limit() is None

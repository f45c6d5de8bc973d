"""The real Triton, from the wheel of nvidia-pytriton: the server and its Python backend, on the CPU and on loopback only."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from filelock import FileLock

from tests.ports import free_ports
from tests.wheels import CACHE, unpacked

WHEEL: Final = "nvidia-pytriton==0.7.0"  # Triton 2.51; 44 MB, and 143 MB unpacked
NUMPY: Final = "numpy==1.26.4"  # this Triton reads arrays of numpy 2 wrong
START_S: Final = 60.0  # 2 s on a free machine
STOP_S: Final = 30.0
SCHEMES: Final = {"http": "http", "grpc": "grpc", "metrics": "http"}


@dataclass(frozen=True)
class Server:
    """A running server. ``log`` is the file that it writes to."""

    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    metrics: str
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON that an HTTP request answers; None for an empty one. Raises urllib's HTTPError."""
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"{self.http}/{path}", data, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it, and returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_S)


def home() -> Path:
    """The folder of the server's files, as it starts it. Skips the test where the wheel cannot be had or does not run."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        pytest.skip("the wheel of Triton is for Linux on x86-64")
    if tuple(map(int, (platform.libc_ver()[1] or "0.0").split("."))) < (2, 35):
        pytest.skip(f"the wheel of Triton needs glibc 2.35, and this is {platform.libc_ver()[1]}")
    files = unpacked(WHEEL, ("pytriton/tritonserver", "nvidia_pytriton.libs"))
    server = files / "pytriton/tritonserver"
    stubs = server / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    if not stubs.is_dir():
        pytest.skip(f"this Triton has no stub of its Python backend for Python {platform.python_version()}")
    stub = server / "backends/python/triton_python_backend_stub"
    with FileLock(CACHE / "triton.lock"):
        if not stub.exists():
            for file in (server / "bin/tritonserver", stubs / stub.name):
                file.chmod(0o755)
            shutil.copy2(stubs / stub.name, stub.with_suffix(".partial"))
            stub.with_suffix(".partial").replace(stub)
    return server


def python(folder: Path, *, numpy: bool = True) -> Path:
    """The ``bin`` of a Python with the packages of this one, and by default the ``numpy`` that this Triton understands."""
    paths = [str(unpacked(NUMPY))] if numpy else []
    paths += [path for path in sys.path if "site-packages" in path]
    venv.create(folder, with_pip=False, symlinks=True)
    (inner,) = folder.glob("lib/python3*/site-packages")
    (inner / "tests.pth").write_text("\n".join(paths) + "\n")
    return folder / "bin"


@contextmanager
def running(
    repository: Path, log: Path, *options: str, ready: bool = True, programs: Path | None = None
) -> Iterator[Server]:
    """A server on the repository, ended afterwards whatever happens. ``ready``: wait until it is, and all its models are.

    ``programs``: the folder of the Python that its models run in, see ``python``.
    """
    root = home()
    programs = programs or python(log.with_suffix(".python"))
    ports = dict(zip(SCHEMES, free_ports(len(SCHEMES)), strict=True))
    command = [
        str(root / "bin/tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={root / 'backends'}",
        f"--cache-directory={root / 'caches'}",
        *(f"--{which}-port={port}" for which, port in ports.items()),
        *(f"--{which}-address=127.0.0.1" for which in ports),
        "--reuse-http-port=false",
        *options,
    ]
    # The stub runs Python isolated: no PYTHONPATH, and the packages of the first python3 on the PATH.
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "LD_LIBRARY_PATH": str(root.parents[1] / "nvidia_pytriton.libs"),
        "OMP_NUM_THREADS": "1",
    }
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=repository)
    server = Server(process, *(f"{scheme}://127.0.0.1:{ports[which]}" for which, scheme in SCHEMES.items()), log)
    try:
        if ready:
            wait_until_ready(server)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until_ready(server: Server, path: str = "v2/health/ready") -> None:
    """Fails the test with the server's log if it ends, or is not ready in time."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if server.process.poll() is not None:
            pytest.fail(f"Triton ended with {server.process.returncode}:\n{server.said[-4000:]}")
        with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            server.ask(path)
            return
        time.sleep(0.05)
    pytest.fail(f"Triton is not ready after {START_S:g} s:\n{server.said[-4000:]}")

"""Runs an image's containers with Docker, or where there is no engine, with buildah: the same few things for either."""

from __future__ import annotations

import abc
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Final

TIMEOUT_S: Final = 600


@dataclass(frozen=True)
class Ran:
    """How a container ended: stdout and stderr as one text, and the seconds from its start to its end."""

    code: int
    output: str
    seconds: float


def execute(command: Sequence[str]) -> Ran:
    """Runs a command here."""
    started = time.perf_counter()
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_S, check=False
    )
    return Ran(done.returncode, done.stdout, time.perf_counter() - started)


def output_of(*command: str) -> str:
    """stdout of a command that must succeed."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def stopped(process: subprocess.Popen[str], after: str, stop: Any) -> Ran:
    """Calls ``stop`` one second after a process has said ``after``, and waits for its end, which must come in 10 s."""
    started = time.perf_counter()
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if after in line:
            time.sleep(1)
            stop()
            break
    try:
        rest, _ = process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        rest = "it did not end within 10 s of SIGTERM"
    return Ran(
        process.returncode if process.returncode is not None else -1,
        "".join(lines) + rest,
        time.perf_counter() - started,
    )


class Engine(abc.ABC):
    """What runs containers. ``mounts`` are host folders with their place in the container and ``:ro``."""

    @abc.abstractmethod
    def size_mb(self, image: str) -> float: ...

    @abc.abstractmethod
    def run(self, image: str, arguments: Sequence[str], mounts: Mapping[str, str]) -> Ran:
        """Entrypoint and arguments."""

    @abc.abstractmethod
    def shell(self, image: str, script: str) -> Ran: ...

    @abc.abstractmethod
    def probe(self, image: str, mounts: Mapping[str, str]) -> Ran:
        """The image's own HEALTHCHECK command, told by the environment to run on the CPU."""

    @abc.abstractmethod
    def stop(self, image: str, arguments: Sequence[str], mounts: Mapping[str, str], *, after: str) -> Ran:
        """SIGTERM to process 1 once it has said ``after``."""

    @abc.abstractmethod
    def remove(self, *images: str) -> None: ...

    @abc.abstractmethod
    def close(self) -> None:
        """Removes the containers."""

    def run_together(self, image: str, arguments: Sequence[str], mounts: Mapping[str, str]) -> list[Ran]:
        """Two containers at once."""
        found: list[Ran] = []
        threads = [Thread(target=lambda: found.append(self.run(image, arguments, mounts))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


class Docker(Engine):
    """A Docker engine, or what answers to ``docker``."""

    def size_mb(self, image: str) -> float:
        return int(output_of("docker", "image", "inspect", "--format", "{{.Size}}", image)) / 1e6

    def run(self, image: str, arguments: Sequence[str], mounts: Mapping[str, str]) -> Ran:
        return execute(["docker", "run", "--rm", *_volumes(mounts), image, *arguments])

    def shell(self, image: str, script: str) -> Ran:
        return execute(["docker", "run", "--rm", "--entrypoint", "/bin/sh", image, "-c", script])

    def probe(self, image: str, mounts: Mapping[str, str]) -> Ran:
        config = json.loads(output_of("docker", "image", "inspect", image))[0]["Config"]
        _, program, *arguments = config["Healthcheck"]["Test"]
        told = ["--env", "SKDEPLOY_BACKEND=onnxruntime", "--entrypoint", program]
        return execute(["docker", "run", "--rm", *told, *_volumes(mounts), image, *arguments])

    def stop(self, image: str, arguments: Sequence[str], mounts: Mapping[str, str], *, after: str) -> Ran:
        name = f"image-check-{os.getpid()}"
        command = ["docker", "run", "--rm", "--name", name, *_volumes(mounts), image, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            return stopped(process, after, lambda: execute(["docker", "kill", "--signal", "TERM", name]))

    def remove(self, *images: str) -> None:
        execute(["docker", "rmi", *images])

    def close(self) -> None:
        """Nothing is left: docker run --rm removes each."""


class Buildah(Engine):
    """buildah without any engine: chroot isolation, and for process 1 a namespace of our own. Needs root."""

    def __init__(self) -> None:
        os.environ.setdefault("STORAGE_DRIVER", "vfs")
        os.environ.setdefault("BUILDAH_ISOLATION", "chroot")
        self._containers: list[str] = []
        self._idle: dict[str, list[str]] = {}

    def size_mb(self, image: str) -> float:
        """All bytes of its files, once."""
        place = self._mount(self._take(image))
        return int(output_of("du", "-sx", "--block-size=1", str(place)).split()[0]) / 1e6

    def run(self, image: str, arguments: Sequence[str], mounts: Mapping[str, str]) -> Ran:
        return self._in(image, [*self._config(image)["Entrypoint"], *arguments], mounts)

    def shell(self, image: str, script: str) -> Ran:
        return self._in(image, ["/bin/sh", "-c", script], {})

    def probe(self, image: str, mounts: Mapping[str, str]) -> Ran:
        _, *command = self._config(image)["Healthcheck"]["Test"]
        return self._in(image, ["env", "SKDEPLOY_BACKEND=onnxruntime", *command], mounts)

    def stop(self, image: str, arguments: Sequence[str], mounts: Mapping[str, str], *, after: str) -> Ran:
        """chroot isolation has no process 1: unshare makes one, with the image's user, environment and folder."""
        container = self._take(image)
        place = self._mount(container)
        config = self._config(image)
        lines = [f"mount -t proc proc {place}/proc", f"mount --rbind /dev {place}/dev"]
        for host, inside in mounts.items():
            path, _, _ = inside.partition(":")
            lines += [f"mkdir -p {place}{path}", f"mount --bind {host} {place}{path}"]
        user = config["User"]
        lines.append(f'exec chroot --userspec={user}:{user} {place} "$@"')
        inner = ["env", "-i", *config["Env"], *config["Entrypoint"], *arguments]
        command = ["unshare", "--mount", "--pid", "--fork", "sh", "-ec", "\n".join(lines), "sh", *inner]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:

            def terminate() -> None:
                first = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
                os.kill(int(first[0]), signal.SIGTERM)

            return stopped(process, after, terminate)

    def remove(self, *images: str) -> None:
        execute(["buildah", "rmi", *images])

    def close(self) -> None:
        for container in self._containers:
            execute(["buildah", "rm", container])
        self._containers.clear()
        self._idle.clear()

    def _in(self, image: str, command: Sequence[str], mounts: Mapping[str, str]) -> Ran:
        container = self._take(image)
        ran = execute(["buildah", "run", *_volumes(mounts), container, "--", *command])
        self._idle[image].append(container)
        return ran

    def _take(self, image: str) -> str:
        """A container of the image; made once, as the file system is copied for each."""
        idle = self._idle.setdefault(image, [])
        if idle:
            return idle.pop()
        container = output_of("buildah", "from", "--pull-never", image).strip()
        self._containers.append(container)
        for volume in self._config(image).get("Volumes") or ():  # buildah would put a folder of its own over our mount
            execute(["buildah", "config", "--volume", f"{volume}-", container])
        return container

    def _mount(self, container: str) -> Path:
        return Path(output_of("buildah", "mount", container).strip())

    def _config(self, image: str) -> Any:
        return json.loads(output_of("buildah", "inspect", "--type", "image", image))["Docker"]["config"]


def _volumes(mounts: Mapping[str, str]) -> list[str]:
    return [word for host, inside in mounts.items() for word in ("--volume", f"{host}:{inside}")]

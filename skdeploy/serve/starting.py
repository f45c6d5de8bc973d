"""``skdeploy start``: a bundle made ready on this device, its engine built once and kept, so that a verb can run on it."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final

import numpy as np

from skdeploy import backends, engines
from skdeploy.backends import DEFAULT
from skdeploy.bundle.artifact import tool_versions
from skdeploy.bundle.folder import MANIFEST, load_bundle
from skdeploy.bundle.runners import runner_on
from skdeploy.core.errors import DependencyError, IntegrityError, ParityError, SkdeployError, UsageError
from skdeploy.core.files import write_text
from skdeploy.core.packages import install_advice
from skdeploy.core.progress import Progress
from skdeploy.devices import cuda
from skdeploy.devices.cuda import CudaDevice
from skdeploy.images.feeds import batches_of
from skdeploy.images.selection import random_images
from skdeploy.line import building
from skdeploy.line.options import BuildRequest
from skdeploy.serve import device_cache

VERBS: Final = ("predict", "verify", "evaluate", "bench")
WAIT_S: Final = 1800.0  # a build at level 5 on the smallest Jetson takes minutes, not half an hour


@dataclass(frozen=True)
class Ready:
    """A bundle that a verb can run on. ``artifact`` is what ``backend`` runs; ``reused`` if the cache had all of it."""

    folder: Path
    artifact: str
    backend: str
    reused: bool
    seconds: float


@dataclass(frozen=True)
class Probe:
    """One inference of one image of noise by what is running here."""

    artifact: str
    backend: str
    open_ms: float
    latency_ms: float


def choose_backend(asked: str | None) -> tuple[str, CudaDevice | None]:
    """Return the backend and the GPU that it runs on: the first that the driver shows, or None for the CPU.

    The CPU is never a fallback. This is decided before anything is copied or built: TensorRT-RTX would build without a GPU,
    and nothing could run it here. Raises UsageError for an unknown backend, DependencyError without a GPU or a compiler for
    it.
    """
    startable = backends.running("onnx", "engine")
    if asked is not None and asked not in startable:
        raise UsageError(f"start does not know a backend {asked!r}", advice=f"choose one of {', '.join(startable)}")
    if asked is not None and backends.backend(asked).DEVICE == "cpu":
        return asked, None
    found = cuda.devices()
    if not found:
        wanted = f"{asked} needs one" if asked else "and skdeploy does not use the CPU unless you ask for it"
        raise DependencyError(
            f"no GPU found, {wanted}: {cuda.driver_problem()}",
            advice="use docker run --gpus all, on a Jetson --runtime nvidia, with NVIDIA's container toolkit on the "
            "host; or run on the CPU: --backend onnxruntime, or SKDEPLOY_BACKEND=onnxruntime",
        )
    if asked is None:
        compiler, reason = engines.choose(engines.AUTO)
        if compiler is None:
            raise DependencyError(
                f"cannot build an engine for {found[0].name}: {reason}",
                advice="start from a BASE_IMAGE with TensorRT, or name another backend with --backend",
            )
        return compiler, found[0]
    if asked in engines.COMPILERS:
        engines.demand(asked)
    return asked, found[0]


def prepare(
    folder: Path, cache: Path, backend: str, device: CudaDevice | None, progress: Progress, *, wait_s: float = WAIT_S
) -> Ready:
    """Copy the bundle into the cache and build its engine, or find both there. The bundle itself is only read.

    Raises UsageError if there is no bundle or the cache takes no files; IntegrityError for a broken or unfinished bundle, a
    full cache, or another process that is still working after ``wait_s`` seconds; EngineError, DependencyError as a build
    does.
    """
    started = time.perf_counter()
    source = load_bundle(folder)
    source.check_deployable()
    if not wait_s >= 0:  # nor NaN
        raise UsageError(f"--wait {wait_s:g}: give seconds, 0 or more")
    entry = _entry(folder, cache, backend, device)
    with device_cache.locked(entry, wait_s, progress):
        reused = device_cache.fill(source, entry, progress)
        if backend in engines.COMPILERS:
            request = BuildRequest(target=backend, timing_cache=_timing_cache(entry, backend))
            reused = building.build_engine(entry, request, progress).reused and reused
        artifact = runner_on(load_bundle(entry), backend).artifact.path
    if not reused:
        _tell_others(entry, progress)
    return Ready(entry, artifact, backend, reused, time.perf_counter() - started)


def find(folder: Path, cache: Path, backend: str, device: CudaDevice | None) -> Ready:
    """Find what an earlier ``prepare`` made. Raises IntegrityError if there is none, or not yet."""
    entry = _entry(folder, cache, backend, device)
    if not (entry / MANIFEST).is_file():
        raise IntegrityError(
            f"{entry} does not exist yet", advice="wait for a start that is preparing it, or run skdeploy start"
        )
    return Ready(entry, runner_on(load_bundle(entry), backend).artifact.path, backend, True, 0.0)


def probe(ready: Ready) -> Probe:
    """Runs one image of noise through it. Raises what opening and running do, ParityError for an output that is not finite."""
    started = time.perf_counter()
    bundle = load_bundle(ready.folder)
    with runner_on(bundle, ready.backend).open() as session:
        opened = time.perf_counter()
        spec = bundle.manifest.model
        feeds, _ = next(batches_of(random_images(spec, 1, 0).crops(spec), spec, session.inputs, 1))
        outputs = session.run(feeds)
        ended = time.perf_counter()
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise ParityError(
                f"{ready.artifact} on {ready.backend}: {name} has NaN or infinite values",
                advice="run skdeploy verify to find out why",
            )
    return Probe(ready.artifact, ready.backend, (opened - started) * 1e3, (ended - opened) * 1e3)


def check_verb(verb: str) -> None:
    """Raises UsageError for a verb that start does not run."""
    if Path(verb).is_dir():
        raise UsageError(
            f"start takes a verb here, but {verb} is a folder",
            advice=f"give the bundle as --bundle {shlex.quote(verb)}, then one of {', '.join(VERBS)}",
        )
    if verb not in VERBS:
        raise UsageError(f"start cannot run the verb {verb!r}", advice=f"choose one of {', '.join(VERBS)}")


def verb_arguments(ready: Ready, verb: str, arguments: Sequence[str]) -> list[str]:
    """The verb's own command line: the cached bundle, what the user gave, and the backend where the user named none."""
    check_verb(verb)
    named = any(word == "--backend" or word.startswith("--backend=") for word in arguments)
    own = ["--backend", ready.backend]
    if verb == "verify":  # runs all that the bundle holds: the engine must be among it, or a provider besides
        own = ["--require-engine"] if ready.backend in engines.COMPILERS else [] if ready.backend == DEFAULT else own
    return [verb, str(ready.folder), *([] if named else own), *arguments]


@contextmanager
def announced(ready: Ready, progress: Progress) -> Iterator[None]:
    """While this holds, ``running`` in another process of the same user and container tells what to probe.

    The announcement is locked, and the lock ends with this process: what a killed start has left is believed by nobody.
    """
    path = _state_path()
    with ExitStack() as stack:
        try:
            write_text(path, json.dumps({**asdict(ready), "folder": str(ready.folder)}))
            fcntl.flock(stack.enter_context(path.open(encoding="utf-8")), fcntl.LOCK_EX)
            stack.callback(path.unlink, missing_ok=True)
        except SkdeployError as error:  # a read-only container without a /tmp: the verb runs all the same
            progress.note(f"give a health probe --backend, because this start cannot be announced: {error.message}")
        yield


def running() -> Ready | None:
    """Read what a running start has announced; None if there is none. Raises IntegrityError for a file that is not ours."""
    path = _state_path()
    try:
        with path.open(encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                raise IntegrityError(f"{path} belongs to another user", advice="delete it, or give --backend")
            if not _is_locked(file):
                return None
            content = json.load(file)
        return Ready(**{**content, "folder": Path(content["folder"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise IntegrityError(f"cannot read {path}: {error}", advice="delete it, or give --backend") from error


def _is_locked(file: IO[str]) -> bool:
    """Whether the start that announced this still runs."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _state_path() -> Path:
    return Path(tempfile.gettempdir()) / f"skdeploy-start-{os.getuid()}.json"


def _entry(folder: Path, cache: Path, backend: str, device: CudaDevice | None) -> Path:
    source = load_bundle(folder)
    key = device_cache.device_key(backend, _runtime_version(backend), device, cuda.driver_version())
    return cache / key / device_cache.bundle_key(source)


def _timing_cache(entry: Path, backend: str) -> Path | None:
    """One for all bundles of a device: it belongs to a GPU and a compiler, as the folder does; None if that has none."""
    return entry.with_name("timing.cache") if "timing_cache" in engines.compiler(backend).TAKES else None


def _runtime_version(backend: str) -> str:
    if backend in engines.COMPILERS:
        return engines.version(backend)
    module = backends.backend(backend)
    for version in tool_versions(module.DISTRIBUTIONS).values():
        if version != "absent":
            return version
    raise DependencyError(f"{backend} is not installed here", advice=install_advice(module.EXTRA))


def _tell_others(entry: Path, progress: Progress) -> None:
    found = device_cache.others(entry)
    if found:
        size = sum(size for _, size in found)
        progress.note(
            f"the cache also holds {len(found)} entries for other bundles, devices or versions, "
            f"{size / 1000000.0:.0f} MB; to delete them: rm -r "
            f"{shlex.join((str(folder) for folder, _ in found))}"
        )

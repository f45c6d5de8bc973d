"""Builds both images of the Dockerfile for real, runs what docs/how-to/docker.md says of them on a CPU.

    python -m tools.image_check
    python -m tools.image_check --builder ../shared/tools/image-build --base localhost/debian-python:bookworm

``--builder`` is a command that takes ``--target`` and ``-t`` like ``docker build``; one that is not docker's must leave its
images to buildah. As root then, for mounts. Exits with 1 if anything is not as it should be, and prints all that was found.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tools.image_engines import Buildah, Docker, Engine, Ran

ROOT: Final = Path(__file__).resolve().parents[1]
EXPORT_LIMIT_MB: Final = 1200  # issue 6, beyond the base, with the CPU build of torch
RUNTIME_LIMIT_MB: Final = 500
START_LIMIT_S: Final = 3.0  # container start to first prediction, with a cached bundle
USER: Final = 10001
BUILD_TOOLS: Final = ("gcc", "cc", "g++", "make", "cmake", "ninja", "pip", "pip3")
CPU: Final = ("--backend", "onnxruntime")
EXPORT: Final = "skdeploy-check-export"
RUNTIME: Final = "skdeploy-check-runtime"


@dataclass
class Findings:
    """What was checked, in order; ``failed`` is what was not as it should be."""

    failed: list[str] = field(default_factory=list)

    def check(self, what: str, good: bool, found: str = "") -> None:
        print(f"{'ok  ' if good else 'FAIL'} {what}{': ' if found else ''}{found}", flush=True)
        if not good:
            self.failed.append(what)

    def ran(self, what: str, ran: Ran, code: int = 0, said: str = "") -> None:
        """A container that should have ended with ``code`` and said ``said``, which is shown where it has not."""
        good = ran.code == code and said in ran.output
        self.check(what, good, f"{ran.seconds:.1f} s" if good else f"exit code {ran.code}\n{ran.output}")


def check_sizes(engine: Engine, base: str, found: Findings) -> None:
    base_mb = engine.size_mb(base)
    for image, limit in ((EXPORT, EXPORT_LIMIT_MB), (RUNTIME, RUNTIME_LIMIT_MB)):
        beyond = engine.size_mb(image) - base_mb
        found.check(f"{image} is at most {limit} MB beyond its base", beyond <= limit, f"{beyond:.0f} MB")


def check_contents(engine: Engine, base: str, found: Findings) -> None:
    """No build tools but what the base came with, no torch in the runtime, and nobody is root."""
    look = "for t in " + " ".join(BUILD_TOOLS) + "; do command -v $t; done; true"
    of_base = set(engine.shell(base, look).output.split())
    for image in (EXPORT, RUNTIME):
        added = set(engine.shell(image, look).output.split()) - of_base
        found.check(f"{image} adds no build tools", not added, " ".join(sorted(added)))
        uid = engine.shell(image, "id -u").output.strip()
        found.check(f"{image} runs as user {USER}", uid == str(USER), uid)
    ran = engine.shell(RUNTIME, "python -c 'import torch'")
    found.check(f"{RUNTIME} has no torch", "No module named 'torch'" in ran.output)
    ran = engine.shell(RUNTIME, "ls -A /opt/skdeploy/lib/*/site-packages | grep -x pip")
    found.check(f"{RUNTIME}'s environment has no pip", ran.code == 1, ran.output)


def check_export(engine: Engine, work: Path, found: Findings) -> None:
    """The whole line in the container: export, verify, report."""
    folder = work / "exported"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    mounts = {f"{ROOT / 'models/weights'}": "/weights:ro", f"{folder}": "/work/build"}
    weights = "/weights/sknet-fashion.safetensors"
    options = ("--fp16", "--target", "onnx", "--weights", weights, "--output", "build/fashion")
    found.ran("export exports", engine.run(EXPORT, ["export", "sknet-fashion", *options], mounts))
    found.ran("export verifies", engine.run(EXPORT, ["verify", "build/fashion"], mounts), said="verified here")
    found.ran("export reports", engine.run(EXPORT, ["report", "build/fashion"], mounts), said="report.html")


def check_runtime(engine: Engine, work: Path, found: Findings) -> None:
    """Refusal without a GPU; then, told to run on the CPU, each verb, from an empty cache and from a full one."""
    data = work / "data"
    data.mkdir()
    _write_image(data / "shoe.png")
    mounts = {
        str(_cache(work, "cache")): "/cache",
        str(data): "/data:ro",
        f"{ROOT / 'calibration/fashion'}": "/fashion:ro",
    }
    found.ran("runtime refuses to run without a GPU", engine.run(RUNTIME, ["verify"], mounts), 3, "no GPU in sight")
    found.ran("probe fails before a start", engine.probe(RUNTIME, mounts), 9, "not there yet")
    predict = [*CPU, "predict", "/data/shoe.png"]
    found.ran("runtime predicts, from an empty cache", engine.run(RUNTIME, predict, mounts), said="made ready")
    times = []
    for _ in range(3):
        ran = engine.run(RUNTIME, predict, mounts)
        found.ran("runtime predicts, from the cache", ran, said="from the cache")
        times.append(ran.seconds)
    best = min(times)
    found.check(f"start to first prediction takes at most {START_LIMIT_S} s", best <= START_LIMIT_S, f"{best:.2f} s")
    found.ran("probe runs an inference", engine.probe(RUNTIME, mounts), said="ms")
    found.ran("runtime verifies", engine.run(RUNTIME, [*CPU, "verify"], mounts), said="verified here")
    evaluate = [*CPU, "evaluate", "--data", "/fashion/evaluation.npz", "--num-images", "200"]
    found.ran("runtime evaluates", engine.run(RUNTIME, evaluate, mounts), said="top-1")
    found.ran("runtime benches", engine.run(RUNTIME, [*CPU, "bench", "--batch", "1"], mounts), said="ms")
    found.ran("runtime refuses an unknown verb", engine.run(RUNTIME, [*CPU, "serve"], mounts), 2, "no verb named")
    missing = {**mounts, str(data): "/bundle:ro"}
    found.ran("runtime refuses a folder without a bundle", engine.run(RUNTIME, predict, missing), 2, "is not a bundle")
    both = engine.run_together(RUNTIME, [*CPU, "verify"], {str(_cache(work, "shared")): "/cache"})
    for ran in both:
        found.ran("of two that start on one empty cache, each verifies", ran, said="verified here")
    closed = work / "closed"
    closed.mkdir(mode=0o755)
    ran = engine.run(RUNTIME, [*CPU, "verify"], {str(closed): "/cache"})
    found.ran("runtime refuses a cache that it cannot write", ran, 2, "cannot write to the cache")


def check_signals(engine: Engine, work: Path, found: Findings) -> None:
    """SIGTERM to the container's process 1, which the kernel spares every default handler, ends it with 143."""
    mounts = {str(_cache(work, "stopped")): "/cache", f"{ROOT / 'calibration/fashion'}": "/fashion:ro"}
    evaluate = [*CPU, "evaluate", "--fresh", "--batch", "1", "--data", "/fashion/evaluation.npz"]
    ran = engine.stop(RUNTIME, evaluate, mounts, after="made ready")
    found.ran("SIGTERM to process 1 ends a running verb", ran, 143, "terminated")


def _cache(work: Path, name: str) -> Path:
    folder = work / name
    folder.mkdir()
    shutil.chown(folder, USER, USER)
    return folder


def _write_image(path: Path) -> None:
    """One of the committed images, as a file."""
    import numpy as np
    from PIL import Image

    with np.load(ROOT / "calibration/fashion/evaluation.npz") as archive:
        Image.fromarray(archive["images"][0, :, :, 0]).save(path)


def _default_base() -> str:
    found = re.search(r"^ARG BASE_IMAGE=(\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SystemExit("the Dockerfile has no default for BASE_IMAGE")
    return found[1]


def main() -> None:
    """Builds, checks, and removes the images again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--builder", default="docker build", help="the command that builds an image from a Dockerfile")
    parser.add_argument("--base", default=_default_base(), help="the base image; an own builder must build on it")
    parser.add_argument("--keep", action="store_true", help="leave the images for a look")
    parser.add_argument("--no-build", action="store_true", help="take the images that an earlier --keep has left")
    asked = parser.parse_args()
    docker = asked.builder.split()[0] == "docker"
    engine: Engine = Docker() if docker else Buildah()
    found = Findings()
    with tempfile.TemporaryDirectory(prefix="image-check-") as scratch:
        work = Path(scratch)
        work.chmod(0o755)
        try:
            for target, image in (("export", EXPORT), ("runtime", RUNTIME)) if not asked.no_build else ():
                started = time.perf_counter()
                command = [*shlex.split(asked.builder), "--target", target, "-t", image]
                command += ["--build-arg", f"BASE_IMAGE={asked.base}", "."] if docker else []
                subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
                print(f"ok   {image} builds: {time.perf_counter() - started:.0f} s", flush=True)
            check_sizes(engine, asked.base, found)
            check_contents(engine, asked.base, found)
            check_export(engine, work, found)
            check_runtime(engine, work, found)
            check_signals(engine, work, found)
        finally:
            engine.close()
            if not asked.keep:
                engine.remove(EXPORT, RUNTIME)
    print(f"{len(found.failed)} failed" if found.failed else "all as it should be")
    sys.exit(bool(found.failed))


if __name__ == "__main__":
    main()

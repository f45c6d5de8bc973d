"""C++ headers from Debian's packages: those that are installed, else unpacked once into ``build/headers``, which takes no root.

Debian 12 has no ONNX Runtime, so they are fetched from 13. Headers of 1.21 serve every later library: its API is versioned, and
``OrtGetApiBase()->GetApi`` gives the version that the headers ask for.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from filelock import FileLock

CACHE: Final = Path(__file__).parents[1] / "build" / "headers"
KEYS: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SOURCE: Final = f"""\
Types: deb
URIs: http://deb.debian.org/debian
Suites: trixie
Components: main
Signed-By: {KEYS}
"""
PACKAGES: Final = {
    "onnxruntime/onnxruntime_cxx_api.h": "libonnxruntime-dev",
    "nlohmann/json.hpp": "nlohmann-json3-dev",
    "openssl/evp.h": "",  # links against the library too: only if it is installed
}


@cache
def include_folder(header: str) -> Path:
    """The include folder that ``header`` is in. Skips the test if the header is neither installed nor to be had."""
    installed = next((p for p in (Path("/usr/include"), Path("/usr/local/include")) if (p / header).is_file()), None)
    if installed is not None:
        return installed
    package = PACKAGES[header]
    if not package:
        pytest.skip(f"{header} is not installed here")
    folder = CACHE / package
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        with FileLock(CACHE / "headers.lock"):
            if not folder.is_dir():
                _fetch(package, folder)
    except OSError as error:
        pytest.skip(f"no headers in {CACHE}: {error.strerror}")
    return folder / "usr/include"


def _fetch(package: str, folder: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None or not KEYS.is_file():
        pytest.skip(f"{package} is not installed, and there is no apt to fetch it with")
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in ("lists/partial", "cache/archives/partial"):
        (CACHE / name).mkdir(parents=True, exist_ok=True)
    sources = CACHE / "debian.sources"
    sources.write_text(SOURCE, encoding="utf-8")
    places = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": CACHE / "lists",
        "Dir::Cache": CACHE / "cache",
        "Acquire::Retries": 0,
        "Acquire::http::Timeout": 15,
    }
    apt = ["apt-get", "-qq", *(word for name, value in places.items() for word in ("-o", f"{name}={value}"))]
    partial.mkdir()
    for command in ([*apt, "update"], [*apt, "download", package]):
        done = subprocess.run(command, cwd=partial, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.skip(f"{package} is not installed and cannot be fetched: {reason}")
    (archive,) = partial.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", archive, partial], check=True, capture_output=True)
    partial.rename(folder)

"""What a result must say of the machine it was measured on, and what is run there. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PEERS_PYTHON: Final = ROOT / ".venv-peers" / "bin" / "python"
SKDEPLOY: Final = Path(sys.executable).with_name("skdeploy")
DISTRIBUTIONS = ("skdeploy", "torch", "onnx", "onnxruntime", "onnxsim", "tensorrt-rtx-cu13")


def describe() -> dict[str, object]:
    """Processor, cores, memory, system and versions."""
    cpuinfo, meminfo = Path("/proc/cpuinfo").read_text(), Path("/proc/meminfo").read_text()
    fields = dict(line.split(":", 1) for line in (cpuinfo + meminfo).splitlines() if ":" in line)
    cpu = {key.strip(): value.strip() for key, value in fields.items()}
    features = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_fp16") if name in cpu["flags"].split()]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": f"{cpu['model name']} family {cpu['cpu family']} model {cpu['model']}, {', '.join(features)}",
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(cpu["MemTotal"].split()[0]) / 2**20, 1),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: metadata.version(name) for name in DISTRIBUTIONS},
    }


def skdeploy(*arguments: str | Path) -> str:
    """What the command prints. Ends this process with its error if it fails."""
    done = subprocess.run([SKDEPLOY, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"skdeploy {' '.join(map(str, arguments))} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout

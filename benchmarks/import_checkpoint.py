"""What importing a checkpoint costs: the size of an SKNet-50 in float32, 110 MB, in each format that we read.

Each in a process of its own: seconds, and peak resident bytes beyond the process that has just imported torch and
our reader. Every value is then used once, as the check for NaN does, so that a file that is only mapped comes into memory too.
The figures to reach are those of issue 3: 1.5 s, 2.5 times the file.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from safetensors.torch import save_file

RUNS: Final = 5
FILE_MB: Final = 110
SECONDS_AT_MOST: Final = 1.5
PEAK_AT_MOST: Final = 2.5  # times the file

# The high-water mark is set back before the import and read after it. ru_maxrss will not do: a process inherits its parent's.
IMPORT: Final = """
import json, sys, time
from pathlib import Path
import torch
from skdeploy.checkpoints.read import read_checkpoint

def resident(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024

torch.set_num_threads(1)  # the check is 300 short loops: on a busy machine several threads wait for each other in each
Path("/proc/self/clear_refs").write_text("5")
before, started = resident("VmRSS:"), time.perf_counter()
checkpoint = read_checkpoint(Path(sys.argv[1]))
finite = all(bool(tensor.isfinite().all()) for tensor in checkpoint.tensors.values())
seconds = time.perf_counter() - started
assert finite and all(tensor.dtype == torch.float32 for tensor in checkpoint.tensors.values())
print(json.dumps([seconds, resident("VmHWM:") - before]))
"""


def weights() -> dict[str, torch.Tensor]:
    """Some 300 tensors of sizes as in a ResNet, 110 MB together."""
    random = torch.Generator().manual_seed(0)
    values = FILE_MB * 10**6 // 4
    sizes = [2_048_000, *(values - 2_048_000) // 300 * torch.ones(300, dtype=torch.long)]
    return {f"module.layer{i}.weight": torch.randn(int(size), generator=random) for i, size in enumerate(sizes)}


def write_files(folder: Path) -> dict[str, Path]:
    """The same weights in each format, as training scripts save them."""
    state = weights()
    content = {"epoch": 90, "state_dict": state}
    files = {
        name: folder / name.replace(" ", "_") for name in ("safetensors", "torch zip", "legacy pickle", "packed zip")
    }
    save_file(state, files["safetensors"])
    torch.save(content, files["torch zip"])
    torch.save(content, files["legacy pickle"], _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(files["torch zip"]) as old, zipfile.ZipFile(
        files["packed zip"], "w", zipfile.ZIP_DEFLATED, compresslevel=1
    ) as new:  # fmt: skip
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    return files


def run_import(path: Path) -> tuple[float, int]:
    done = subprocess.run([sys.executable, "-c", IMPORT, str(path)], check=True, capture_output=True, text=True)
    seconds, peak = json.loads(done.stdout)
    return float(seconds), int(peak)


def measure() -> dict[str, object]:
    """Medians of five for each format."""
    result: dict[str, object] = {"file_mb": FILE_MB}
    with TemporaryDirectory() as folder:
        for name, path in write_files(Path(folder)).items():
            runs = [run_import(path) for _ in range(RUNS)]
            size = path.stat().st_size
            seconds = statistics.median(run[0] for run in runs)
            peak = statistics.median(run[1] for run in runs) / size
            result[name] = {
                "import_s": {
                    "median": round(seconds, 3),
                    "at_most": SECONDS_AT_MOST,
                    "reached": seconds <= SECONDS_AT_MOST,
                },
                "peak_per_file": {"median": round(peak, 2), "at_most": PEAK_AT_MOST, "reached": peak <= PEAK_AT_MOST},
            }
    return result

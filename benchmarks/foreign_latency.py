"""What rewriting the select of someone else's ONNX file is worth: their file against the same file through our line.

Their file is what anyone makes: ``torch.onnx.export`` with its defaults and onnx-simplifier, of pytorchcv's ``sknet50`` and
timm's ``skresnext50_32x4d``. Ours is that file read by ``read_foreign``, simplified and rewritten by ``RewriteSelect``. Same
weights, same ONNX Runtime with two threads, float32, one 224 x 224 image. Runs are interleaved; the result is a ratio of
medians.

timm comes from the environment that ``make peers`` builds; without it, that network is skipped and the result says so.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import onnx
import onnxsim

from benchmarks.machine import PEERS_PYTHON
from benchmarks.select_latency import AT_MOST, ROUNDS
from benchmarks.timing import in_turns, ratio_of_medians, session
from skdeploy.ir.large import save_model
from skdeploy.passes.foreign import read_foreign
from skdeploy.passes.select import RewriteSelect
from skdeploy.passes.simplify import simplify

BUILDERS: Final = {
    "pytorchcv sknet50": "from pytorchcv.models.sknet import sknet50; network = sknet50()",
    "timm skresnext50_32x4d": "import timm; network = timm.create_model('skresnext50_32x4d')",
}
# Run in a process of its own: one pass in training mode gives normalisations the statistics that training would.
EXPORT: Final = """
import sys, torch
torch.manual_seed(0)
{build}
for module in network.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        module.momentum = 1.0
with torch.no_grad():
    network.train()(torch.randn(4, 3, 224, 224))
dims = ({{0: torch.export.Dim("batch")}},)
program = torch.onnx.export(network.eval(), (torch.zeros(2, 3, 224, 224),), dynamo=True, dynamic_shapes=dims, verbose=False)
program.save(sys.argv[1])
"""


def export(name: str, python: Path, folder: Path) -> Path:
    """The file that ``torch.onnx`` and onnx-simplifier make of a network of the interpreter ``python``."""
    raw, path = folder / "raw.onnx", folder / "theirs.onnx"
    script = EXPORT.format(build=BUILDERS[name])
    done = subprocess.run([python, "-c", script, raw], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"exporting {name} failed:\n{done.stderr}")
    simplified, _ = onnxsim.simplify(onnx.load(raw))
    onnx.save(simplified, path)
    return path


def compare(theirs: Path, ours: Path) -> dict[str, object]:
    """Latencies, their ratio, and the sizes of both graphs; both must compute the same."""
    sessions = {"ours": session(ours), "theirs": session(theirs)}
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    feeds = {name: {running.get_inputs()[0].name: image} for name, running in sessions.items()}
    outputs = {name: running.run(None, feeds[name])[0] for name, running in sessions.items()}
    largest = np.abs(outputs["theirs"]).max()
    # With random weights, float32 itself is 2e-4 of the largest logit away from float64: torch, their file and ours alike.
    np.testing.assert_allclose(outputs["ours"], outputs["theirs"], rtol=0, atol=1e-3 * largest)
    return {
        **ratio_of_medians(in_turns(sessions, feeds, ROUNDS), "ours", "theirs", AT_MOST),
        "nodes": {name: len(onnx.load(path).graph.node) for name, path in (("ours", ours), ("theirs", theirs))},
    }


def measure() -> dict[str, object]:
    """For each network the comparison, or why there is none."""
    pythons = {"pytorchcv sknet50": Path(sys.executable), "timm skresnext50_32x4d": PEERS_PYTHON}
    results: dict[str, object] = {}
    for name, python in pythons.items():
        if not python.exists():
            results[name] = {"skipped": f"{python.parent.parent.name} is not there: run `make peers`"}
            continue
        with TemporaryDirectory() as folder:
            theirs, ours = export(name, python, Path(folder)), Path(folder) / "ours.onnx"
            model, rewrite = simplify(read_foreign(theirs)), RewriteSelect()
            rewrite(model)
            save_model(model, ours)
            results[name] = {"blocks": len(rewrite.report.found), **compare(theirs, ours)}
    return results

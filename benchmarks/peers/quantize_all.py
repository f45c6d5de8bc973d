"""Quantizes an FP32 ONNX file with every tool, a process each.

    .venv-peers/bin/python benchmarks/peers/quantize_all.py MODEL.onnx INPUTS.npy FOLDER [--only WORDS ...] [--gate NAME ...]
                                                            [--limit SECONDS]

INPUTS.npy holds the calibration images as the network takes them, (N, C, H, W) float32. Writes FOLDER/<recipe>.onnx and
FOLDER/quantized.json: for each recipe the file and wall time, or the error. A recipe that takes longer than the limit is ended.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def one(recipe: str, model: Path, inputs: Path, gate: list[str], output: Path) -> None:
    """Runs a recipe in this process."""
    import numpy as np

    from benchmarks.peers.quantizers import RECIPES

    RECIPES[recipe](model, np.load(inputs), frozenset(gate), output)


def apart(recipe: str, model: Path, inputs: Path, gate: list[str], output: Path, limit: float) -> dict[str, object]:
    """Runs a recipe in a process and a folder of its own: some tools write beside the model."""
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "model.onnx"
        shutil.copy(model, copy)
        arguments = [sys.executable, __file__, str(copy), str(inputs), str(output.resolve()), "--recipe", recipe]
        arguments += ["--gate", *gate]
        started = time.perf_counter()
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=limit)
        except subprocess.TimeoutExpired:
            return {"error": f"did not end within {limit:g} s"}
        seconds = time.perf_counter() - started
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"}
    return {"file": output.name, "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("output", type=Path, help="a folder; with --recipe, a file")
    parser.add_argument("--only", nargs="*", default=[], help="recipes whose name has all words of one of these")
    parser.add_argument("--gate", nargs="*", default=[], help="the layers of gates")
    parser.add_argument("--limit", type=float, default=600, help="seconds for a recipe")
    parser.add_argument("--recipe", help="this one alone, in this process")
    options = parser.parse_args()
    if options.recipe:
        one(options.recipe, options.model, options.inputs, options.gate, options.output)
        return
    from benchmarks.peers.quantizers import RECIPES

    options.output.mkdir(parents=True, exist_ok=True)
    results = {}
    for recipe in RECIPES:
        if not options.only or any(set(words.split()) <= set(recipe.split()) for words in options.only):
            output = options.output / f"{recipe.replace(' ', '_')}.onnx"
            results[recipe] = apart(recipe, options.model, options.inputs, options.gate, output, options.limit)
            print(recipe, results[recipe], flush=True)
    (options.output / "quantized.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

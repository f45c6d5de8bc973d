"""A checkpoint's network to an FP16 engine as most scripts do it, and nothing is checked: torch.onnx, onnx-simplifier, ONNX
Runtime's float16 converter, TensorRT-RTX. The network itself is skdeploy's module, as a user's own would be imported.

python benchmarks/peers/bare_export.py CARD FOLDER
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import onnx
import onnxsim
import tensorrt_rtx as trt
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16

from skdeploy.zoo.build import build, initialise
from skdeploy.zoo.cards import load_card

PROFILE = (1, 8, 32)


def main() -> None:
    card, folder = sys.argv[1], Path(sys.argv[2])
    warnings.simplefilter("ignore")
    spec, _ = load_card(card)
    network = build(spec)
    initialise(network, 0)
    network.eval()

    traced = folder / "model.traced.onnx"
    torch.onnx.export(
        network,
        (torch.zeros(2, *spec.input.shape),),
        traced,
        dynamo=True,
        external_data=False,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=19,
        verbose=False,
    )

    simplified, same = onnxsim.simplify(onnx.load(traced))
    assert same
    onnx.save(simplified, folder / "model.onnx")

    half = convert_float_to_float16(simplified, keep_io_types=True)
    onnx.save(half, folder / "model.fp16.onnx")

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network_ = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network_, logger)
    if not parser.parse_from_file(str(folder / "model.fp16.onnx")):
        raise SystemExit("\n".join(str(parser.get_error(index)) for index in range(parser.num_errors)))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("input", *((batch, *spec.input.shape) for batch in PROFILE))
    config.add_optimization_profile(profile)
    (folder / "model.engine").write_bytes(memoryview(builder.build_serialized_network(network_, config)))


if __name__ == "__main__":
    main()

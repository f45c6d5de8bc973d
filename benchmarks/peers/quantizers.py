"""What other tools make of an FP32 ONNX file and calibration inputs. Runs in the environment of ``make peers``.

Each recipe is a function (model path, inputs (N, C, H, W) float32, names of the gates' layers, output path) that writes a Q/DQ
graph. "default" is the tool as its documentation calls it; the others are named after what differs. "outside the gate"
quantizes every convolution and the classifier, and leaves the gates of the selective kernels alone: what skdeploy does, so like
for like.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # every tool calibrates on the CPU

import numpy as np
import onnx
from numpy.typing import NDArray

Inputs = NDArray[np.float32]
Gate = frozenset[str]
Recipe = Callable[[Path, Inputs, Gate, Path], None]
BATCH: Final = 8  # of the tools that take batches; NNCF's statistics are an image each, as its documentation asks for


def weighted_outside_gate(model: Path, gate: Gate) -> list[str]:
    """The names of all convolutions and fully connected layers that are not of a gate."""
    nodes = onnx.load(model).graph.node
    return [node.name for node in nodes if node.op_type in ("Conv", "Gemm") and node.name not in gate]


def inside_gate(model: Path, gate: Gate) -> list[str]:
    """The gates' layers, every other node of a module called gate, and the mean and sum that feed it."""
    names = [node.name for node in onnx.load(model).graph.node]
    return [
        name
        for name in names
        if name in gate or ".gate" in name or (".sk/" in name and ("ReduceMean" in name or name.endswith("/Add")))
    ]


def ort_reader(inputs: Inputs, name: str) -> Any:
    """ONNX Runtime's and ModelOpt's way of reading batches."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self.rewind()

        def rewind(self) -> None:
            self.batches = iter([inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH)])

        def get_first(self) -> dict[str, Inputs]:
            return {name: inputs[:BATCH]}

        def get_next(self) -> dict[str, Inputs] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch}

    return Reader()


def input_name(model: Path) -> str:
    return str(onnx.load(model).graph.input[0].name)


def onnxruntime_static(method: str, variant: str, model: Path, inputs: Inputs, gate: Gate, output: Path) -> None:
    """``quantize_static``; ``variant`` is one of

    * default: asymmetric INT8, a scale a tensor, for weights too;
    * uint8: what its documentation advises for CPUs, the same ranges;
    * symmetric: what TensorRT takes: zero points of 0, a scale a channel for weights, biases as they are;
    * int32_bias: symmetric, but with biases quantized;
    * outside_gate: symmetric, and nothing but the inputs of convolutions and classifier.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    options: dict[str, Any] = {}
    if variant == "uint8":
        options = {"activation_type": QuantType.QUInt8}
    elif variant != "default":
        options = {
            "per_channel": True,
            "activation_type": QuantType.QInt8,
            "weight_type": QuantType.QInt8,
            "extra_options": {
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": variant == "int32_bias",
            },
        }
    if variant == "outside_gate":
        options["nodes_to_quantize"] = weighted_outside_gate(model, gate)
        # Inputs of weighted nodes only, as NVIDIA recommends: an output pair more would quantize what an FP32 node reads.
        options["extra_options"]["OpTypesToExcludeOutputQuantization"] = ["Conv", "Gemm"]
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"  # what its documentation asks for first
        quant_pre_process(str(model), str(prepared))
        quantize_static(
            str(prepared),
            str(output),
            ort_reader(inputs, input_name(model)),
            calibrate_method=CalibrationMethod[method],
            **options,
        )


def nncf_ptq(variant: str, model: Path, inputs: Inputs, gate: Gate, output: Path) -> None:
    """``nncf.quantize``; ``variant`` is default, or words of mixed, accurate_bias, minmax, smooth and outside_gate.

    minmax: ranges from the largest values of all images; its default takes the mean over images of each one's largest.
    smooth: SmoothQuant moves the scales of channels from activations into weights, its answer to unequal channels; off for
    convolutions unless asked for, and run for this model type only.
    """
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    options: dict[str, Any] = {}
    advanced: dict[str, Any] = {}
    if "mixed" in variant:
        options["preset"] = nncf.QuantizationPreset.MIXED
    if "accurate_bias" in variant:
        options["fast_bias_correction"] = False
    if "minmax" in variant:
        advanced["activations_range_estimator_params"] = RangeEstimatorParametersSet.MINMAX
    if "smooth" in variant:
        advanced["smooth_quant_alphas"] = nncf.AdvancedSmoothQuantParameters(convolution=0.5, matmul=0.5)
        options["model_type"] = nncf.ModelType.TRANSFORMER
    if "outside_gate" in variant:
        options["ignored_scope"] = nncf.IgnoredScope(names=inside_gate(model, gate))
    name = input_name(model)
    dataset = nncf.Dataset([inputs[index : index + 1] for index in range(len(inputs))], lambda image: {name: image})
    parameters = nncf.AdvancedQuantizationParameters(**advanced)
    quantized = nncf.quantize(
        onnx.load(model), dataset, subset_size=len(inputs), advanced_parameters=parameters, **options
    )
    onnx.save(quantized, output)


def modelopt_int8(method: str, variant: str, model: Path, inputs: Inputs, gate: Gate, output: Path) -> None:
    """``modelopt.onnx.quantization.quantize``; ``variant`` is default, fp32 or outside_gate."""
    from modelopt.onnx.quantization import quantize

    options: dict[str, Any] = {}
    if variant != "default":
        options["high_precision_dtype"] = "fp32"
    if variant == "outside_gate":
        options["nodes_to_exclude"] = [f"^{name.replace('.', '[.]')}$" for name in inside_gate(model, gate)]
        # Its default leaves out a classifier of fewer than 16 classes, which is no faster in INT8.
        options["enable_gemv_detection_for_trt"] = False
    shape = "x".join(str(size) for size in (BATCH, *inputs.shape[1:]))
    quantize(
        str(model),
        quantize_mode="int8",
        calibration_data=inputs,
        calibration_method=method,
        calibration_shapes=f"{input_name(model)}:{shape}",
        calibration_eps=["cpu"],
        output_path=str(output),
        log_level="WARNING",
        **options,
    )


RECIPES: Final[dict[str, Recipe]] = {
    **{
        f"onnxruntime {method.lower()} {variant}": partial(onnxruntime_static, method, variant)
        for variant in ("default", "symmetric", "outside_gate")
        for method in ("MinMax", "Entropy", "Percentile")
    },
    **{
        f"nncf {variant}": partial(nncf_ptq, variant)
        for variant in (
            "default",
            "mixed",
            "accurate_bias",
            "outside_gate",
            "minmax_outside_gate",
            "smooth_outside_gate",
            "smooth_minmax_outside_gate",
        )
    },
    **{
        f"modelopt {method} {variant}": partial(modelopt_int8, method, variant)
        for variant in ("default", "fp32", "outside_gate")
        for method in ("max", "entropy")
    },
}

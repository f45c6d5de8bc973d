"""Options of ONNX Runtime on a GPU: their names and values there, and those that make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from skdeploy.backends.base import options_of
from skdeploy.backends.onnxruntime_gpu import CUDA, TENSORRT, TensorRTOptions
from skdeploy.core.errors import UsageError
from skdeploy.core.spec import TensorSpec

IMAGES = TensorSpec(name="images", dtype="float32", shape=("batch", 3, 224, 224))
OPEN = TensorSpec(name="images", dtype="float32", shape=("batch", 3, "height", "width"))


@pytest.mark.parametrize(
    ("texts", "given"),
    [
        ([], {"device_id": "0", "cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "0"}),  # FP32 is FP32 by default
        (
            ["device=1", "memory-mib=512", "convolution-search=heuristic", "tf32=on"],
            {
                "device_id": "1",
                "gpu_mem_limit": str(512 * 1024 * 1024),
                "arena_extend_strategy": "kSameAsRequested",
                "cudnn_conv_algo_search": "HEURISTIC",
                "use_tf32": "1",
            },
        ),
    ],
)
def test_options_of_cuda_have_onnx_runtimes_names(texts: list[str], given: dict[str, str]) -> None:
    assert options_of(CUDA, texts).provider_options() == given


def test_options_of_tensorrt_have_onnx_runtimes_names(tmp_path: Path) -> None:
    texts = ["device=1", "batch=1/4/16", "opt-level=5", "workspace-mib=256", f"cache={tmp_path}"]
    options = options_of(TENSORRT, texts)
    assert options.cache_root == tmp_path
    assert options.provider_options([IMAGES], tmp_path / "key") == {
        "device_id": "1",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(tmp_path / "key"),
        "trt_builder_optimization_level": "5",
        "trt_max_workspace_size": str(256 * 1024 * 1024),
        "trt_profile_min_shapes": "images:1x3x224x224",
        "trt_profile_opt_shapes": "images:4x3x224x224",
        "trt_profile_max_shapes": "images:16x3x224x224",
    }


def test_precision_is_never_an_option_of_tensorrt_and_an_engine_is_kept_only_in_a_cache() -> None:
    """With a flag of a precision the provider makes a network whose types TensorRT chooses."""
    options = options_of(TENSORRT, ["cache=off"])
    assert options.cache_root is None
    given = options.provider_options([IMAGES], None)
    assert given["trt_engine_cache_enable"] == "False"
    assert not [name for name in given if any(word in name for word in ("fp16", "int8", "bf16", "cache_path"))]


def test_profiles_are_of_open_sizes_alone() -> None:
    fixed = TensorSpec(name="images", dtype="float32", shape=(8, 3, 224, 224))
    assert not [name for name in TensorRTOptions().provider_options([fixed], None) if "profile" in name]
    assert TensorRTOptions().profile([fixed]) == {"images": ((8, 3, 224, 224),) * 3}
    limits = options_of(TENSORRT, ["sizes=112x96/224x224/448x512"]).profile([OPEN])
    assert limits == {"images": ((1, 3, 112, 96), (8, 3, 224, 224), (32, 3, 448, 512))}


def test_open_sizes_without_limits_are_refused() -> None:
    with pytest.raises(UsageError, match=r"images: float32\[batch, 3, height, width\] leaves height open") as refusal:
        TensorRTOptions().profile([OPEN])
    assert "sizes=HxW/HxW/HxW" in refusal.value.advice


@pytest.mark.parametrize(
    ("backend_id", "text", "words"),
    [
        (CUDA, "device=-1", "device -1: must be at least 0"),
        (CUDA, "memory-mib=0", "memory-mib 0: must be at least 1"),
        (CUDA, "memory-mib=-4", "memory-mib -4: must be at least 1"),
        (CUDA, "memory-mib=much", "'much' is not a whole number"),
        (CUDA, "tf32=yes", "on or off"),
        (CUDA, "convolution-search=fast", "one of exhaustive, heuristic, default"),
        (CUDA, "opt-level=3", "opt-level=3: onnxruntime-cuda does not have"),
        (CUDA, "device", "device: onnxruntime-cuda does not have"),
        (CUDA, "device=0 device=1", "device is given twice"),
        (TENSORRT, "opt-level=6", "opt-level 6: must be 0 to 5"),
        (TENSORRT, "opt-level=-1", "opt-level -1: must be 0 to 5"),
        (TENSORRT, "workspace-mib=-4", "workspace-mib -4: must be at least 1"),
        (TENSORRT, "workspace-mib=0", "workspace-mib 0: must be at least 1"),
        (TENSORRT, "batch=0/1/8", "batch 0/1/8 is not 1 <= min <= opt <= max"),
        (TENSORRT, "batch=8/4/2", "batch 8/4/2 is not"),
        (TENSORRT, "batch=8", "the smallest, the most frequent and the largest"),
        (TENSORRT, "sizes=224/224/224", "HEIGHTxWIDTH"),
        (TENSORRT, "sizes=224x224/112x112/448x448", "sizes 224/112/448 is not"),
        (TENSORRT, "cache=", "a folder, or off"),
        (TENSORRT, "tf32=on", "onnxruntime-tensorrt does not have"),
    ],
)
def test_options_that_make_no_sense_are_refused(backend_id: str, text: str, words: str) -> None:
    with pytest.raises(UsageError) as refusal:
        options_of(backend_id, text.split())
    assert words in refusal.value.message


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "tensorrt"])
def test_backends_without_options_take_none(name: str) -> None:
    assert options_of(name, []) is None
    with pytest.raises(UsageError, match=f"{name} takes no --backend-option"):
        options_of(name, ["device=0"])

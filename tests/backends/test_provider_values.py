"""Every value that we give to ONNX Runtime's GPU providers, read by the providers' own libraries: no GPU is needed for that."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest

from skdeploy.backends.onnxruntime_gpu import CudaOptions, Search, TensorRTOptions
from skdeploy.core.spec import TensorSpec
from tests.backends import provider_parser
from tests.wheels import stub_libraries, unpacked

WHEEL = "onnxruntime-gpu==1.31.1"  # the newest; 256 MB
LIBRARIES = {CudaOptions.PROVIDER: "cuda", TensorRTOptions.PROVIDER: "tensorrt"}
IMAGES = TensorSpec(name="images", dtype="float32", shape=("batch", 3, 8, 8))
OPEN = TensorSpec(name="images", dtype="float32", shape=("batch", 3, "height", "width"))

Options = dict[str, str]


@pytest.fixture
def wheel(request: pytest.FixtureRequest) -> Path:
    return unpacked(
        WHEEL, ("onnxruntime/__init__", "onnxruntime/capi/"), fetch=bool(request.config.getoption("--slow"))
    )


def refusals(wheel: Path, provider: str, options: Sequence[Options]) -> list[str]:
    """What the provider's library says of each; stubs of CUDA and TensorRT let it load."""
    library = wheel / "onnxruntime" / "capi" / f"libonnxruntime_providers_{LIBRARIES[provider]}.so"
    stubs = stub_libraries(library, wheel.with_name(f"{wheel.name}.{LIBRARIES[provider]}.stubs"))
    ran = subprocess.run(
        [sys.executable, provider_parser.__file__, wheel, *stubs],
        input=json.dumps([(provider, each) for each in options]),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    found: list[str] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_tensorrts_provider_takes_every_value_that_it_is_given(wheel: Path, tmp_path: Path) -> None:
    given = [
        TensorRTOptions().provider_options([IMAGES], None),
        TensorRTOptions(cache=tmp_path).provider_options([IMAGES], tmp_path / "a folder"),
        TensorRTOptions(sizes=((8, 8), (16, 8), (32, 16))).provider_options([OPEN], None),
        *(
            TensorRTOptions(optimization_level=level, workspace_bytes=1 << 33).provider_options([IMAGES], None)
            for level in range(6)
        ),
    ]
    assert refusals(wheel, TensorRTOptions.PROVIDER, given) == [""] * len(given)


def test_cudas_provider_takes_every_value_that_it_is_given(wheel: Path) -> None:
    given = [
        CudaOptions(convolution_search=search, tf32=tf32, memory_bytes=limit).provider_options()
        for search in get_args(Search)
        for tf32 in (False, True)
        for limit in (None, 1 << 33)
    ]
    assert refusals(wheel, CudaOptions.PROVIDER, given) == [""] * len(given)


@pytest.mark.parametrize(
    ("provider", "option", "words"),
    [
        (TensorRTOptions.PROVIDER, {"trt_engine_cache_enable": "1"}, "should be 'True' or 'False'"),
        (TensorRTOptions.PROVIDER, {"trt_max_workspace_size": "much"}, "stoull"),
        (TensorRTOptions.PROVIDER, {"trt_cache": "True"}, "Invalid TensorRT EP option: trt_cache"),
        (CudaOptions.PROVIDER, {"use_tf32": "yes"}, 'Failed to parse provider option "use_tf32"'),
        (CudaOptions.PROVIDER, {"cudnn_conv_algo_search": "FAST"}, "Failed to map enum name to value: FAST"),
    ],
)
def test_a_wrong_value_is_refused(provider: str, option: Options, words: str, wheel: Path) -> None:
    (refusal,) = refusals(wheel, provider, [option])
    assert words in refusal

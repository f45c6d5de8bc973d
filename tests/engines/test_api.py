"""The Protocols say what TensorRT has; a release that renames any of it fails here, by name."""

from __future__ import annotations

import inspect

import pytest

from skdeploy.engines import _api

CLASSES = {
    _api.Tensor: "ITensor",
    _api.Layer: "ILayer",
    _api.Network: "INetworkDefinition",
    _api.OptimizationProfile: "IOptimizationProfile",
    _api.BuilderConfig: "IBuilderConfig",
    _api.HostMemory: "IHostMemory",
    _api.Builder: "Builder",
    _api.ParserError: "ParserError",
    _api.OnnxParser: "OnnxParser",
    _api.ExecutionContext: "IExecutionContext",
    _api.Engine: "ICudaEngine",
    _api.EngineInspector: "EngineInspector",
    _api.Runtime: "Runtime",
    _api.TimingCache: "ITimingCache",
    _api.Refitter: "Refitter",
    _api.OnnxParserRefitter: "OnnxParserRefitter",
}
ENUMERATIONS = {
    "BuilderFlag": {
        "TF32",
        "VERSION_COMPATIBLE",
        "EXCLUDE_LEAN_RUNTIME",
        "STRIP_PLAN",
        "REFIT_IDENTICAL",
        "GPU_FALLBACK",
    },
    "DeviceType": {"DLA"},
    "HardwareCompatibilityLevel": {"NONE", "AMPERE_PLUS"},  # SAME_COMPUTE_CAPABILITY came with TensorRT 10.9
    "LayerInformationFormat": {"JSON"},
    "MemoryPoolType": {"WORKSPACE", "TACTIC_DRAM"},
    "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED"},
    "ProfilingVerbosity": {"DETAILED"},
}
ONLY_RTX = {"num_compute_capabilities", "set_compute_capability"}


def members(protocol: type) -> set[str]:
    return {name for name in [*vars(protocol), *inspect.get_annotations(protocol)] if not name.startswith("_")}


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_module_has_what_the_protocols_say(name: str) -> None:
    trt = pytest.importorskip(name)
    for protocol, real in CLASSES.items():
        wanted = members(protocol) - (ONLY_RTX if name == "tensorrt" else set())
        assert wanted, protocol
        assert wanted - set(dir(getattr(trt, real))) == set(), real
    assert members(_api.Compiler) - set(dir(trt)) == set()
    assert members(_api.Refits) - set(dir(trt)) == set()
    if name == "tensorrt_rtx":
        assert members(_api.TargetsCapabilities) - set(dir(trt)) == set()
        assert members(_api.ValidatesPlans) - set(dir(trt.Runtime)) == set()


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_module_has_the_members_of_enumerations_that_a_build_asks_for(name: str) -> None:
    trt = pytest.importorskip(name)
    for enumeration, wanted in ENUMERATIONS.items():
        assert wanted - set(getattr(trt, enumeration).__members__) == set(), enumeration


def test_every_member_is_looked_at() -> None:
    assert members(_api.ExecutionContext) >= {"execute_async_v3", "set_tensor_address"}
    assert members(_api.BuilderConfig) >= ONLY_RTX | {"progress_monitor"}
    assert set(CLASSES) | {
        _api.Compiler,
        _api.Refits,
        _api.TargetsCapabilities,
        _api.ValidatesPlans,
        _api.Enumerated,
        _api.Enumeration,
    } == {
        found
        for name, found in vars(_api).items()
        if inspect.isclass(found) and found.__module__ == _api.__name__ and not name.startswith("_")
    }


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_every_data_type_has_a_name(name: str) -> None:
    trt = pytest.importorskip(name)
    assert {member for member in trt.DataType.__members__ if member not in _api.DTYPES} == set()

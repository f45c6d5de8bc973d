"""The part of TensorRT's Python API that skdeploy uses, the same in TensorRT 10.x, 11.x and TensorRT-RTX, as types.

The compilers are given to functions as modules, so these Protocols are what a type checker knows of them:
TensorRT-RTX has no stubs, and tensorrt-stubs 10.13 is not valid Python. A test compares them with the installed
module. Shapes are sequences of int, -1 for a dynamic dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

DTYPES: Final = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "E8M0": "float8_e8m0fnu",
    "FP4": "float4_e2m1fn",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "INT4": "int4",
    "UINT8": "uint8",
    "BOOL": "bool",
}


class Enumerated(Protocol):
    """A value of one of TensorRT's enumerations."""

    name: str

    def __int__(self) -> int: ...


class Enumeration(Protocol):
    """One of TensorRT's enumerations."""

    __members__: Mapping[str, Enumerated]


class Tensor(Protocol):
    name: str
    shape: Sequence[int]
    dtype: Enumerated

    def get_dimension_name(self, index: int, /) -> str: ...


class Layer(Protocol):
    name: str
    type: Enumerated
    metadata: str
    num_inputs: int
    num_outputs: int

    def get_input(self, index: int) -> Tensor | None: ...
    def get_output(self, index: int) -> Tensor: ...


class Network(Protocol):
    num_inputs: int
    num_outputs: int
    num_layers: int
    error_recorder: object

    def get_input(self, index: int) -> Tensor: ...
    def get_output(self, index: int) -> Tensor: ...
    def get_layer(self, index: int) -> Layer: ...


class OptimizationProfile(Protocol):
    def set_shape(self, name: str, low: Sequence[int], best: Sequence[int], high: Sequence[int], /) -> None: ...


class BuilderConfig(Protocol):
    """``num_compute_capabilities`` and ``set_compute_capability`` are TensorRT-RTX's only; DLA and timing caches are TensorRT's
    only, though TensorRT-RTX has the names.
    """

    profiling_verbosity: object
    progress_monitor: object
    num_compute_capabilities: int
    builder_optimization_level: int
    hardware_compatibility_level: object
    default_device_type: object
    DLA_core: int

    def clear_flag(self, flag: Enumerated, /) -> None: ...
    def set_flag(self, flag: Enumerated, /) -> None: ...
    def set_compute_capability(self, capability: Enumerated, index: int, /) -> bool: ...
    def set_memory_pool_limit(self, pool: Enumerated, size: int, /) -> None: ...
    def get_memory_pool_limit(self, pool: Enumerated, /) -> int: ...
    def create_timing_cache(self, content: bytes, /) -> TimingCache | None: ...
    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool, /) -> bool: ...
    def add_optimization_profile(self, profile: OptimizationProfile, /) -> int: ...


class HostMemory(Protocol):
    nbytes: int

    def __buffer__(self, flags: int, /) -> memoryview: ...


class TimingCache(Protocol):
    def serialize(self) -> HostMemory | None: ...


class Builder(Protocol):
    error_recorder: object
    num_DLA_cores: int  # noqa: N815 - TensorRT's name

    def create_network(self, flags: int, /) -> Network | None: ...
    def create_builder_config(self) -> BuilderConfig | None: ...
    def create_optimization_profile(self) -> OptimizationProfile | None: ...
    def build_serialized_network(self, network: Network, config: BuilderConfig, /) -> HostMemory | None: ...


class ParserError(Protocol):
    def node_name(self) -> str: ...
    def node_operator(self) -> str: ...
    def desc(self) -> str: ...
    def func(self) -> str: ...


class OnnxParser(Protocol):
    num_errors: int

    def parse_from_file(self, path: str, /) -> bool: ...
    def get_error(self, index: int, /) -> ParserError: ...


class Refitter(Protocol):
    def get_missing_weights(self) -> Sequence[str]: ...
    def refit_cuda_engine(self) -> bool: ...


class OnnxParserRefitter(Protocol):
    num_errors: int

    def refit_from_file(self, path: str, /) -> bool: ...
    def get_error(self, index: int, /) -> ParserError: ...


class ExecutionContext(Protocol):
    def set_optimization_profile_async(self, profile: int, stream: int, /) -> bool: ...
    def set_input_shape(self, name: str, shape: Sequence[int], /) -> bool: ...
    def set_tensor_address(self, name: str, address: int, /) -> bool: ...
    def infer_shapes(self) -> Sequence[str]: ...
    def get_tensor_shape(self, name: str, /) -> Sequence[int]: ...
    def execute_async_v3(self, stream: int, /) -> bool: ...


class EngineInspector(Protocol):
    execution_context: ExecutionContext

    def get_engine_information(self, layout: Enumerated, /) -> str: ...


class Engine(Protocol):
    num_io_tensors: int
    num_optimization_profiles: int

    def get_tensor_name(self, index: int, /) -> str: ...
    def get_tensor_mode(self, name: str, /) -> Enumerated: ...
    def get_tensor_dtype(self, name: str, /) -> Enumerated: ...
    def get_tensor_shape(self, name: str, /) -> Sequence[int]: ...
    def get_tensor_profile_shape(self, name: str, profile: int, /) -> Sequence[Sequence[int]]: ...
    def create_execution_context(self) -> ExecutionContext | None: ...
    def create_engine_inspector(self) -> EngineInspector | None: ...


class Runtime(Protocol):
    def deserialize_cuda_engine(self, plan: bytes, /) -> Engine | None: ...


MakesBuilder = Callable[[object], Builder]  # from a logger, as the others' last argument
MakesParser = Callable[[Network, object], OnnxParser]
MakesRuntime = Callable[[object], Runtime]
MakesRefitter = Callable[[Engine, object], Refitter]
MakesParserRefitter = Callable[[Refitter, object], OnnxParserRefitter]


class Compiler(Protocol):
    """The imported module, ``tensorrt`` or ``tensorrt_rtx``."""

    __name__: str
    __version__: str
    BuilderFlag: Enumeration
    DeviceType: Enumeration
    HardwareCompatibilityLevel: Enumeration
    IErrorRecorder: type
    ILogger: type
    IProgressMonitor: type
    LayerInformationFormat: Enumeration
    MemoryPoolType: Enumeration
    NetworkDefinitionCreationFlag: Enumeration
    ProfilingVerbosity: Enumeration
    Builder: MakesBuilder
    OnnxParser: MakesParser
    Runtime: MakesRuntime


class Refits(Protocol):
    """The part of the module that gives weights back to stripped plans."""

    Refitter: MakesRefitter
    OnnxParserRefitter: MakesParserRefitter


class ValidatesPlans(Protocol):
    """The extra method of TensorRT-RTX's runtime: it judges a plan by its header."""

    def get_engine_validity(self, plan: bytes, /) -> tuple[Enumerated, int]: ...


class TargetsCapabilities(Protocol):
    """The extra enum of TensorRT-RTX: compute capabilities that it builds for, such as SM89 for 8.9."""

    ComputeCapability: Enumeration


def dtype_name(dtype: Enumerated) -> str:
    """numpy's (or ml_dtypes') name of a TensorRT data type; TensorRT's own for one that came after this was written."""
    return DTYPES.get(dtype.name, dtype.name.lower())

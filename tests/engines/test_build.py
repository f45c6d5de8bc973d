"""Builds with TensorRT-RTX, which needs no GPU; TensorRT goes through the same code with another module."""

from __future__ import annotations

import errno
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from skdeploy import engines
from skdeploy.core.errors import EngineError, UsageError
from skdeploy.engines import _build
from skdeploy.engines._build import BatchProfile, BuildOptions, EngineReport
from skdeploy.engines.proof import read_graph

pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")

GraphWriter = Callable[..., Path]
PROFILE = BatchProfile(1, 4, 8)


def build(graph: Path, plan: Path, on_progress: Any = lambda *_: None, **options: Any) -> EngineReport:
    return engines.build("tensorrt_rtx", graph, plan, BuildOptions(**{"profile": PROFILE, **options}), on_progress)


def quantized(write_graph: GraphWriter, zero_point: np.generic) -> Path:
    return write_graph(
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="dequantize"),
        scale=np.array(0.1, np.float32),
        zero=np.array(zero_point),
    )


# What a build gives


def test_report_of_an_fp32_graph(fp32: Path, plan: Path) -> None:
    report = build(fp32, plan, workspace_bytes=64 << 20)
    assert report.compiler == "tensorrt_rtx"
    assert report.plan_bytes == plan.stat().st_size > 0
    assert report.profile == {"images": ((1, 3, 16, 16), (4, 3, 16, 16), (8, 3, 16, 16))}
    assert report.layer_types == {"float32": report.layers}
    assert report.activation_memory_bytes is not None
    assert report.activation_memory_bytes > 8 * 3 * 16 * 16 * 4
    assert report.workspace_bytes == 64 << 20
    assert report.log_warnings == ()
    assert report.seconds > 0
    assert EngineReport.model_validate_json(report.model_dump_json()) == report


def test_precision_is_the_graphs(fp32: Path, fp16: Path, plan: Path) -> None:
    single, half = build(fp32, plan), build(fp16, plan)
    assert half.layer_types == {"float16": half.layers}
    assert single.weights_memory_bytes is not None
    assert half.weights_memory_bytes is not None
    # Half of it, and padding to alignment, which weighs much in a network of 25,000 parameters.
    assert 0.4 < half.weights_memory_bytes / single.weights_memory_bytes < 0.7


def test_symmetric_int8_builds(write_graph: GraphWriter, plan: Path) -> None:
    assert build(quantized(write_graph, np.int8(0)), plan).layer_types["int8"] >= 1


# Profiles


def test_a_profile_that_no_tensor_can_hold_fails_the_build(fp16: Path, plan: Path) -> None:
    """TensorRT-RTX warns of it and builds: an engine that does not run in all of its profile."""
    with pytest.raises(EngineError, match=r"profile 1/4/2000000000: .*tensor volume exceeds") as refusal:
        build(fp16, plan, profile=BatchProfile(1, 4, 2_000_000_000))
    assert "Condition" not in refusal.value.message
    assert "a smaller largest batch" in refusal.value.advice
    assert not plan.exists()


def test_a_compiler_chooses_no_profile_itself(fp32: Path, plan: Path) -> None:
    with pytest.raises(UsageError, match=r"no batch profile to build .*fp32\.onnx with"):
        build(fp32, plan, profile=None)
    assert not plan.exists()


def test_fixed_batch_must_be_inside_the_profile(fixed_batch_of_2: Path, plan: Path) -> None:
    assert build(fixed_batch_of_2, plan).profile == {"images": ((2, 3, 16, 16),) * 3}
    with pytest.raises(UsageError, match=r"fixed size 2 in dimension 0.*outside the profile 4/4/8"):
        build(fixed_batch_of_2, plan, profile=BatchProfile(4, 4, 8))


def test_dynamic_size_takes_its_profile_from_sizes(dynamic_size: Path, fp32: Path, plan: Path) -> None:
    report = build(dynamic_size, plan, sizes=((8, 10), (16, 16), (32, 40)))
    assert report.profile == {"images": ((1, 3, 8, 10), (4, 3, 16, 16), (8, 3, 32, 40))}
    with pytest.raises(UsageError, match=r"'images'.*no profile for dimension 2") as refusal:
        build(dynamic_size, plan)
    assert "--dynamic-size" in refusal.value.advice
    with pytest.raises(UsageError, match=r"fixed size \(3, 16, 16\)"):
        build(fp32, plan, sizes=((8, 8), (16, 16), (32, 32)))


def test_dynamic_size_of_pixels_last_is_found_by_name(plan: Path, write_graph: GraphWriter) -> None:
    shape = ("batch", "height", "width", 3)  # as --embed-preprocess --dynamic-size exports
    graph = write_graph(helper.make_node("Relu", ["x"], ["y"]), shape=shape)
    report = build(graph, plan, sizes=((8, 10), (16, 16), (32, 40)))
    assert report.profile == {"x": ((1, 8, 10, 3), (4, 16, 16, 3), (8, 32, 40, 3))}


def test_fp32_means_fp32_not_tf32(fp32: Path, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = _build.configure

    def configure(trt: Any, builder: Any, config: Any, *others: Any) -> None:
        assert config.get_flag(trt.BuilderFlag.TF32)  # TensorRT's default, so that clearing it is seen below
        real(trt, builder, config, *others)
        seen.append(config.get_flag(trt.BuilderFlag.TF32))

    monkeypatch.setattr(_build, "configure", configure)
    build(fp32, plan)
    assert seen == [False]


# Graphs that are refused


def test_unknown_operator_is_named_with_its_node_and_file(write_graph: GraphWriter, plan: Path) -> None:
    graph = write_graph(helper.make_node("Strange", ["x"], ["y"], name="the node", domain="com.acme"))
    with pytest.raises(EngineError, match=r"node 'the node' \(Strange\): .*Plugin not found") as refusal:
        build(graph, plan)
    assert str(graph) in refusal.value.message
    assert not plan.exists()


def test_unsupported_operators_are_listed_up_to_five(write_graph: GraphWriter, plan: Path) -> None:
    names = ["x", *(f"t{index}" for index in range(6)), "y"]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", [start], [end, f"s{end}", f"z{end}"], name=f"node_{start}")
        for start, end in itertools.pairwise(names)
    ]
    with pytest.raises(EngineError) as refusal:
        build(write_graph(*nodes), plan)
    assert "node 'node_x' (DynamicQuantizeLinear): the operator DynamicQuantizeLinear is not supported" in str(
        refusal.value
    )
    assert refusal.value.message.count("  node ") == 5
    assert "and 2 more" in refusal.value.message


def test_mixed_types_and_asymmetric_quantization_are_named_with_their_node(
    write_graph: GraphWriter, plan: Path
) -> None:
    mixed = write_graph(helper.make_node("Add", ["x", "k"], ["y"], name="mixed"), k=np.ones(1, np.float16))
    with pytest.raises(EngineError, match=r"node 'mixed' \(Add\): .*same input types.*Float and Half"):
        build(mixed, plan)
    with pytest.raises(EngineError, match=r"node 'quantize'.*Non-zero zero point"):
        build(quantized(write_graph, np.int8(5)), plan)


def test_uint8_that_would_become_int8_is_refused(write_graph: GraphWriter, plan: Path) -> None:
    """The parser only warns, and would build INT8 with another range. Nothing is built to find that out."""
    phases: list[str] = []
    with pytest.raises(EngineError, match=r"node quantize \(QuantizeLinear\): .*Defaulting to INT8") as refusal:
        build(quantized(write_graph, np.uint8(0)), plan, on_progress=lambda phase, _: phases.append(phase))
    assert "other types than the graph has" in refusal.value.message
    assert phases == []
    assert not plan.exists()


def test_double_that_would_become_float_is_refused(write_graph: GraphWriter, plan: Path) -> None:
    """The parser says nothing at all."""
    graph = write_graph(helper.make_node("Relu", ["x"], ["y"]), dtype=TensorProto.DOUBLE)
    with pytest.raises(EngineError, match=r"makes 'x' of .* float32, but the graph has float64"):
        build(graph, plan)


def test_input_of_an_unknown_type_is_refused(write_graph: GraphWriter, plan: Path) -> None:
    graph = write_graph(
        helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT),
        dtype=TensorProto.INT16,
        out_dtype=TensorProto.FLOAT,
    )
    with pytest.raises(EngineError, match="no single node, but the file or the graph's own inputs"):
        build(graph, plan)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no graph"),  # the parser accepts this without an error, and the next
        (b"this is no protocol buffer" * 40, "holds no graph"),
        (40_000, ""),  # the first bytes of a graph
        (None, ""),
    ],
    ids=["empty", "garbage", "truncated", "absent"],
)
def test_file_that_is_no_graph_is_refused(content: Any, words: str, fp32: Path, tmp_path: Path, plan: Path) -> None:
    broken = tmp_path / "broken.onnx"
    if content is not None:
        broken.write_bytes(fp32.read_bytes()[:content] if isinstance(content, int) else content)
    with pytest.raises(EngineError, match=rf"broken\.onnx.*{words}"):
        build(broken, plan)


def test_weights_beside_the_file_are_found(write_graph: GraphWriter, tmp_path: Path, plan: Path) -> None:
    graph = write_graph(helper.make_node("Add", ["x", "k"], ["y"]), k=np.ones((1, 3), np.float32))
    model = onnx.load(graph)
    onnx.save(model, tmp_path / "outside.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").exists()
    assert build(tmp_path / "outside.onnx", plan).plan_bytes > 0


def test_more_profiles_are_built_and_reported(fp16: Path, plan: Path) -> None:
    one = build(fp16, plan)
    two = build(fp16, plan, more_profiles=(BatchProfile(64, 64, 64),))
    assert one.more_profiles == ()
    assert two.profile == one.profile
    assert two.more_profiles == ({"images": ((64, 3, 16, 16),) * 3},)
    assert two.plan_bytes > 1.5 * one.plan_bytes  # kernels of its own


# What is proven of it


def test_the_report_has_the_proof_and_what_the_plan_was_built_for(fp16: Path, plan: Path) -> None:
    report = build(fp16, plan, compute_capabilities=("8.9",))
    assert report.proof.source == "definition"  # ahead of time there is no plan to ask
    assert report.proof.weighted
    assert {layer.found for layer in report.proof.weighted} == {"fp16"}
    assert report.built_for.compute_capabilities == ("8.9",)
    assert report.built_for.version == report.version
    assert not report.built_for.stripped


def test_a_layer_that_runs_wider_than_the_graph_says_fails_the_build(
    fp32: Path, fp16: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layers of an FP32 network, held against the FP16 graph of the same network and names."""
    phases: list[str] = []
    real = _build.prove_definition
    monkeypatch.setattr(_build, "prove_definition", lambda network, _: real(network, read_graph(fp16)))
    with pytest.raises(
        EngineError, match=r"run in a wider type than the graph has.*\n  node_\w+ \(fp32, in the graph"
    ) as error:
        build(fp32, plan, on_progress=lambda phase, _: phases.append(phase))
    assert error.value.exit_code == 7
    assert phases == []
    assert not plan.exists()


# Compute capabilities


def test_it_runs_on_all_but_turing_or_on_what_is_named(fp16: Path, plan: Path) -> None:
    (words,) = build(fp16, plan).runs_on
    assert "8.0, 8.6, 8.9, 12.0" in words
    assert "7.5" not in words
    assert "TensorRT-RTX" in words
    (words,) = build(fp16, plan, compute_capabilities=("7.5", "8.9")).runs_on
    assert "compute capability 7.5, 8.9 on" in words


def test_each_choice_of_capabilities_is_another_plan(fp16: Path, tmp_path: Path) -> None:
    """So they reach the compiler. The word after the magic of the plan's second header has a bit for each capability."""
    headers = []
    for index, chosen in enumerate([("8.0",), ("8.9",), ()]):
        path = tmp_path / f"{index}.engine"
        build(fp16, path, compute_capabilities=chosen)
        headers.append(path.read_bytes()[:64])
    assert len(set(headers)) == len(headers)


def test_unknown_capability_is_refused_with_the_known_ones(fp16: Path, plan: Path) -> None:
    with pytest.raises(UsageError, match=r"9\.0") as refusal:
        build(fp16, plan, compute_capabilities=("8.9", "9.0"))
    assert "7.5, 8.0, 8.6, 8.9, 12.0" in refusal.value.advice


def test_failed_build_tells_the_compilers_reason(fp32: Path, plan: Path) -> None:
    """Turing has no FP32 GEMM in TensorRT-RTX 1.7; the parser accepts the graph, the builder does not."""
    with pytest.raises(EngineError, match=r"could not build .*Turing.*not supported \(in node_Gemm_\d+\)") as refusal:
        build(fp32, plan, compute_capabilities=("7.5",))
    assert "cudaError" not in refusal.value.message
    assert not plan.exists()


# Progress, cancelling, writing


def test_progress_never_falls_within_a_phase(fp32: Path, plan: Path) -> None:
    reached: dict[str, float] = {}

    def on_progress(phase: str, fraction: float) -> None:
        assert 0 <= fraction <= 1
        assert fraction == 0 or fraction >= reached[phase]
        reached[phase] = fraction

    build(fp32, plan, on_progress=on_progress)
    assert len(reached) > 3
    assert set(reached.values()) == {1.0}


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("the progress bar broke")])
def test_exception_in_the_callback_cancels_the_build(failure: BaseException, fp32: Path, plan: Path) -> None:
    calls = []

    def on_progress(phase: str, fraction: float) -> None:
        calls.append(phase)
        raise failure

    with pytest.raises(type(failure)) as raised:
        build(fp32, plan, on_progress=on_progress)
    assert raised.value is failure
    assert len(calls) == 1
    assert not plan.exists()


def test_ctrl_c_cancels_the_build_and_the_next_one_works(fp32: Path, plan: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)

    def on_progress(phase: str, fraction: float) -> None:
        if phase == "Optimizing graph":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build(fp32, plan, on_progress=on_progress)
    assert not plan.exists()
    assert signal.getsignal(signal.SIGINT) is handler
    assert build(fp32, plan).plan_bytes == plan.stat().st_size


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_full_disk_is_an_error(fp32: Path) -> None:
    with pytest.raises(OSError, match="No space left") as failure:
        build(fp32, Path("/dev/full"))
    assert failure.value.errno == errno.ENOSPC

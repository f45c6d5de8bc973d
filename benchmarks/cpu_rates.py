"""What this CPU reaches in ONNX Runtime, from single operators of round sizes: never from a network that is to be predicted.

An operator is put in a row, once short and once long; the difference is its time inside a network, without what a session costs
and without the layout that inputs and outputs have to be brought into. Rows take turns, and of each row the fastest run counts:
other programs can only add to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf, log, prod
from typing import Any, Final, Literal

import numpy as np

from benchmarks.timing import session
from skdeploy.core.architecture import Frozen

Kind = Literal["dense", "pointwise", "grouped", "depthwise", "first"]
SHORT: Final = 2
LONG: Final = 6
ELEMENTWISE_LONG: Final = 34  # they are short
ROUNDS: Final = 12
LEAST_S: Final = 1e-8
MAPS: Final = ((48, 64), (24, 128), (12, 256), (6, 512))  # height and width, and channels, as networks have them
GROUP_WIDTHS: Final = (4, 8, 16, 32)
GROUPS: Final = 16
VECTOR_CHANNELS: Final = 512  # of the maps of one pixel
STREAM: Final = 4096  # a matrix of 64 MiB, larger than caches
SQUARE: Final = 768  # of the matrices whose product is the peak
ELEMENTWISE: Final = (1 << 14, 1 << 18)  # elements: 64 KiB and 1 MiB a tensor


class ConvRate(Frozen):
    """Multiply-accumulates a second of convolutions like this one."""

    kind: Kind
    into_group: int
    pixels: int
    macs_a_second: float


class CopyRate(Frozen):
    """Bytes a second, read and written, of an operator on tensors of so many bytes."""

    tensor_bytes: int
    bytes_a_second: float


class CpuRates(Frozen):
    """What was measured. ``operator_ms`` is what an operator costs however small it is."""

    threads: int
    peak_macs_a_second: float
    memory_bytes_a_second: float
    operator_ms: float
    convolutions: tuple[ConvRate, ...]
    copies: tuple[CopyRate, ...]

    def conv_rate(self, kind: Kind, into_group: int, pixels: int) -> float:
        """Of the measured convolution of that kind whose channels a group, then pixels, are nearest in proportion."""
        alike = [rate for rate in self.convolutions if rate.kind == kind]
        nearest = min(
            alike,
            key=lambda rate: (
                abs(log(rate.into_group / into_group)) if kind == "grouped" else 0.0,
                abs(log(rate.pixels / pixels)),
            ),
        )
        return nearest.macs_a_second

    def copy_rate(self, tensor_bytes: int) -> float:
        """Of the measured tensors nearest in size."""
        return min(self.copies, key=lambda rate: abs(log(rate.tensor_bytes / max(tensor_bytes, 1)))).bytes_a_second


@dataclass
class _Row:
    """One operator, in a short and a long row that is ``steps`` longer, and the fastest run of each, in seconds."""

    short: Callable[[], object]
    long: Callable[[], object]
    steps: int
    short_s: float = inf
    long_s: float = inf

    def step(self) -> None:
        started = time.perf_counter()
        self.short()
        between = time.perf_counter()
        self.long()
        self.short_s = min(self.short_s, between - started)
        self.long_s = min(self.long_s, time.perf_counter() - between)

    @property
    def seconds(self) -> float:
        """Of one operator. Never nought: a clock's noise must not become an endless rate."""
        return max((self.long_s - self.short_s) / self.steps, LEAST_S)


def measure_rates(threads: int, rounds: int = ROUNDS) -> CpuRates:
    """Takes about ten seconds."""
    convolutions = dict(_conv_rows(threads))
    copies = {elements: _elementwise_row(elements, threads) for elements in ELEMENTWISE}
    tiny = _elementwise_row(8, threads)
    square = _matmul_row(SQUARE, SQUARE, threads)
    stream = _matmul_row(1, STREAM, threads, LONG - SHORT)
    rows = [*convolutions.values(), *copies.values(), tiny, square, stream]
    for _ in range(rounds):
        for row in rows:
            row.step()
    return CpuRates(
        threads=threads,
        peak_macs_a_second=SQUARE**3 / square.seconds,
        memory_bytes_a_second=STREAM * STREAM * 4 / stream.seconds,
        operator_ms=1000 * tiny.seconds,
        convolutions=tuple(
            ConvRate(kind=kind, into_group=into, pixels=pixels, macs_a_second=macs / row.seconds)
            for (kind, into, pixels, macs), row in convolutions.items()
        ),
        copies=tuple(
            # Two tensors are read and one is written.
            CopyRate(tensor_bytes=4 * elements, bytes_a_second=12 * elements / max(row.seconds - tiny.seconds, LEAST_S))
            for elements, row in copies.items()
        ),
    )


def _conv_rows(threads: int) -> Iterator[tuple[tuple[Kind, int, int, int], _Row]]:
    for size, channels in MAPS:
        yield _conv_row("dense", channels, channels, 3, 1, size, threads)
        yield _conv_row("pointwise", channels, channels, 1, 1, size, threads)
        yield _conv_row("depthwise", channels, channels, 3, channels, size, threads)
        for width in GROUP_WIDTHS:
            yield _conv_row("grouped", GROUPS * width, GROUPS * width, 3, GROUPS, size, threads)
    yield _conv_row("pointwise", VECTOR_CHANNELS, VECTOR_CHANNELS, 1, 1, 1, threads)
    yield _conv_row("first", 3, 32, 5, 1, 128, threads)


def _conv_row(
    kind: Kind, into: int, out: int, kernel: int, groups: int, size: int, threads: int
) -> tuple[tuple[Kind, int, int, int], _Row]:
    macs = out * into // groups * kernel**2 * size**2
    make, counts = (_first_model, (1, SHORT)) if kind == "first" else (_conv_model, (SHORT, LONG))
    shape = (1, into, size, size)
    short, long = (_runner(make(into, out, kernel, groups, size, count), shape, threads) for count in counts)
    return (kind, into // groups, size**2, macs), _Row(short, long, counts[1] - counts[0])


def _conv_model(into: int, out: int, kernel: int, groups: int, size: int, count: int) -> bytes:
    """``count`` convolutions with ReLU, one after another, each with weights of its own."""
    from onnx import helper

    nodes = []
    weights: dict[str, Any] = {}
    for index in range(count):
        weights[f"w{index}"] = _numbers(out, into // groups, kernel, kernel)
        inputs = [f"x{index}", f"w{index}"]
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", inputs, [f"y{index}"], pads=pads, group=groups))
        nodes.append(helper.make_node("Relu", [f"y{index}"], [f"x{index + 1}"]))
    return _model(nodes, weights, (1, into, size, size), (1, out, size, size), f"x{count}")


def _first_model(into: int, out: int, kernel: int, groups: int, size: int, count: int) -> bytes:
    """A convolution of an image, once or twice beside each other, and the sum of the two."""
    from onnx import helper

    del groups
    weights = {f"w{index}": _numbers(out, into, kernel, kernel) for index in range(count)}
    pads = [kernel // 2] * 4
    nodes = [helper.make_node("Conv", ["x0", f"w{index}"], [f"y{index}"], pads=pads) for index in range(count)]
    nodes.append(helper.make_node("Max", [f"y{index}" for index in range(count)], ["z"]))
    return _model(nodes, weights, (1, into, size, size), (1, out, size, size), "z")


def _elementwise_row(elements: int, threads: int) -> _Row:
    from onnx import helper

    runs = []
    for count in (SHORT, ELEMENTWISE_LONG):
        nodes = [helper.make_node("Sub", [f"x{index}", "x0"], [f"x{index + 1}"]) for index in range(count)]
        shape = (1, 8, elements // 8)
        runs.append(_runner(_model(nodes, {}, shape, shape, f"x{count}"), shape, threads))
    return _Row(runs[0], runs[1], ELEMENTWISE_LONG - SHORT)


def _matmul_row(rows: int, size: int, threads: int, steps: int = LONG - SHORT) -> _Row:
    from onnx import helper

    runs = []
    for count in (SHORT, SHORT + steps):
        nodes = [helper.make_node("MatMul", [f"x{index}", f"w{index}"], [f"x{index + 1}"]) for index in range(count)]
        weights = {f"w{index}": _numbers(size, size) for index in range(count)}
        runs.append(_runner(_model(nodes, weights, (rows, size), (rows, size), f"x{count}"), (rows, size), threads))
    return _Row(runs[0], runs[1], steps)


def _numbers(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Weights under which values neither die out nor grow: subnormal numbers are slow."""
    fan_in = prod(shape[1:])
    return np.random.default_rng(0).standard_normal(shape, np.float32) * np.float32((2 / fan_in) ** 0.5)


def _model(
    nodes: list[Any], weights: dict[str, Any], into: tuple[int, ...], out: tuple[int, ...], output: str
) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "row",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, into)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, out)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return bytes(model.SerializeToString())


def _runner(model: bytes, shape: tuple[int, ...], threads: int) -> Callable[[], object]:
    running = session(model, threads, spinning=False)
    feeds = {"x0": np.random.default_rng(1).standard_normal(shape, np.float32)}
    return lambda: running.run(None, feeds)

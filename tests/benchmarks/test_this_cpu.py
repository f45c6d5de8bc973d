"""This CPU: the model by hand on made-up rates, and a quick real measurement."""

from __future__ import annotations

import pytest

from benchmarks import cpu_rates
from benchmarks.cpu_rates import ConvRate, CopyRate, CpuRates, measure_rates
from benchmarks.this_cpu import cpu_costs, kind_of, predicted_ms
from skdeploy.planning.layers import ONNXRUNTIME, fuse
from tests.planning.graphs import conv, graph, node, plain, residual, weight

RATES = CpuRates(
    threads=1,
    peak_macs_a_second=1e9,
    memory_bytes_a_second=1e9,
    operator_ms=0.5,
    convolutions=(
        ConvRate(kind="pointwise", into_group=64, pixels=16, macs_a_second=1e6),
        ConvRate(kind="pointwise", into_group=64, pixels=4096, macs_a_second=9e6),
        ConvRate(kind="grouped", into_group=4, pixels=16, macs_a_second=2e6),
        ConvRate(kind="grouped", into_group=32, pixels=16, macs_a_second=8e6),
    ),
    copies=(CopyRate(tensor_bytes=512, bytes_a_second=1e6), CopyRate(tensor_bytes=1 << 20, bytes_a_second=1e7)),
)


def test_convolutions_take_the_rate_of_those_like_them() -> None:
    assert RATES.conv_rate("pointwise", 8, 25) == 1e6
    assert RATES.conv_rate("pointwise", 8, 1000) == 9e6
    assert RATES.conv_rate("grouped", 8, 16) == 2e6
    assert RATES.conv_rate("grouped", 24, 16) == 8e6


def test_a_latency_by_hand() -> None:
    """Two 1x1 convolutions of 1024 multiply-accumulates at 1 M/s; the second adds a skip of 512 bytes at 1 MB/s."""
    found = cpu_costs(fuse(plain(residual()).model, ONNXRUNTIME), RATES)
    assert [cost.floor_ms for cost in found] == pytest.approx([1.024, 1.024 + 0.512])
    assert predicted_ms(found, RATES) == pytest.approx(1.024 + 1.536 + 2 * 0.5)


def test_a_map_that_leaves_its_blocks_is_copied() -> None:
    """The subtraction takes plain maps: the convolution's output is read and written once more, 2 x 512 bytes."""
    nodes = [conv("a", "x", "w"), node("Sub", "s", "a_y", "x")]
    found = cpu_costs(fuse(plain(graph(nodes, {"w": weight(8, 8)}, (1, 8, 4, 4), "s_y")).model, ONNXRUNTIME), RATES)
    assert [cost.floor_ms for cost in found] == pytest.approx([1.024 + 1.024, 3 * 0.512])


@pytest.mark.parametrize(
    ("groups", "into", "kernel", "kind"),
    [(1, 8, 1, "pointwise"), (1, 8, 3, "dense"), (1, 3, 3, "first"), (8, 1, 3, "depthwise"), (4, 4, 3, "grouped")],
)
def test_kinds_of_convolutions(groups: int, into: int, kernel: int, kind: str) -> None:
    channels = groups * into
    nodes = [conv("a", "x", "w", group=groups, pads=[kernel // 2] * 4)]
    (layer,) = fuse(plain(graph(nodes, {"w": weight(channels, into, kernel)}, (1, channels, 4, 4), "a_y")).model)
    assert kind_of(layer) == kind


def test_rates_are_measured_for_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small shapes and one round: that each row runs, not what it reaches."""
    monkeypatch.setattr(cpu_rates, "MAPS", ((6, 32),))
    monkeypatch.setattr(cpu_rates, "STREAM", 128)
    monkeypatch.setattr(cpu_rates, "SQUARE", 64)
    rates = measure_rates(1, rounds=2)
    assert {rate.kind for rate in rates.convolutions} == {"dense", "pointwise", "grouped", "depthwise", "first"}
    assert {rate.into_group for rate in rates.convolutions if rate.kind == "grouped"} == {4, 8, 16, 32}
    assert rates.peak_macs_a_second > 0
    assert rates.memory_bytes_a_second > 0

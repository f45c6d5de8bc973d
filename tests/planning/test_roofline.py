"""Bytes and floors of tiny graphs, by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest

from skdeploy.core.errors import UsageError
from skdeploy.core.precision import PRECISIONS, Precision
from skdeploy.passes.regroup import Regroup
from skdeploy.planning.layers import Layer, fuse
from skdeploy.planning.recommend import Recommendation, decide, groups_left, recommend, ways_to_export
from skdeploy.planning.roofline import bytes_moved, costs, floor_ms, least_memory_bytes, types_of, work_of
from skdeploy.planning.tensor_cores import int8_reason, padded_macs
from tests.planning.graphs import conv, graph, node, plain, residual, weight

MAP = 8 * 4 * 4  # elements of the tiny graphs' maps
WEIGHTS = 8 * 8


@dataclass(frozen=True)
class Synthetic:
    """1 G multiply-accumulates a second in FP32, 2 in FP16, INT8 ``int8`` as fast as that; ``gb_s`` from memory."""

    gb_s: float
    int8: float = 2.0

    def macs_a_second(self, precision: Precision) -> float:
        return {Precision.FP32: 1e9, Precision.FP16: 2e9, Precision.INT8: 2e9 * self.int8}[precision]

    @property
    def bytes_a_second(self) -> float:
        return self.gb_s * 1e9


def moved(precision: Precision) -> list[int]:
    read = plain(residual())
    return [bytes_moved(layer, types_of(read, precision)) for layer in fuse(read.model)]


def test_bytes_are_inputs_weights_and_outputs_once() -> None:
    # x and y of the graph stay FP32. First: x, weights, and its output; second: that, weights, the skip, and y.
    assert moved(Precision.FP32) == [4 * (MAP + WEIGHTS + MAP), 4 * (MAP + WEIGHTS + MAP + MAP)]
    assert moved(Precision.FP16) == [4 * MAP + 2 * (WEIGHTS + MAP), 2 * (MAP + WEIGHTS) + 4 * (MAP + MAP)]


def test_int8_as_placement_would_have_it() -> None:
    assert moved(Precision.INT8) == [4 * MAP + WEIGHTS + MAP, MAP + WEIGHTS + 4 * (MAP + MAP)]


def test_a_map_with_a_raw_and_an_int8_reader_is_written_twice() -> None:
    nodes = [
        conv("a", "x", "wa"),
        node("QuantizeLinear", "q", "a_y", "s", "z"),
        node("DequantizeLinear", "d", "q_y", "s", "z"),
        conv("b", "d_y", "wb"),
        node("Sub", "m", "b_y", "a_y"),
    ]
    weights = {"wa": weight(8, 8), "wb": weight(8, 8), "s": np.float32(1), "z": np.int8(0)}
    read = plain(graph(nodes, weights, (1, 8, 4, 4), "m_y"))
    layers = {layer.name: layer for layer in fuse(read.model)}
    assert bytes_moved(layers["a"], types_of(read, Precision.INT8)) == 4 * MAP + 2 * WEIGHTS + (2 + 1) * MAP
    assert bytes_moved(layers["b"], types_of(read, Precision.INT8)) == MAP + 2 * WEIGHTS + 2 * MAP


def test_the_floor_is_the_larger_of_arithmetic_and_bytes_layer_by_layer() -> None:
    read = plain(residual())
    layers = fuse(read.model)
    macs = WEIGHTS * 4 * 4
    # 1024 multiply-accumulates at 1 G/s: 1.024 us. Bytes: 1280 and 1792. At 1.5 GB/s: 0.853 and 1.195 us.
    found = costs(work_of(layers, types_of(read, Precision.FP32)), Synthetic(1.5))
    assert [cost.bound for cost in found] == ["compute", "memory"]
    assert floor_ms(found) == pytest.approx(1000 * (macs / 1e9 + 1792 / 1.5e9))
    assert found[0].intensity == pytest.approx(macs / 1280)


def test_a_batch_reads_its_weights_once() -> None:
    one, four = (
        sum(bytes_moved(layer, types_of(read, Precision.FP32)) for layer in fuse(read.model))
        for read in (plain(residual()), plain(residual(), 4))
    )
    assert four == 4 * one - 3 * 2 * 4 * WEIGHTS


def test_memory_is_all_weights_and_the_maps_of_the_layer_that_has_most() -> None:
    read = plain(residual(), 4)
    layers = fuse(read.model)
    # The second layer reads two maps and writes one, of four images; the graph's own input and output stay FP32.
    assert least_memory_bytes(layers, types_of(read, Precision.FP32)) == 4 * (2 * WEIGHTS + 4 * 3 * MAP)
    assert least_memory_bytes(layers, types_of(read, Precision.FP16)) == 2 * 2 * WEIGHTS + 4 * (2 + 4 + 4) * MAP


def test_weights_that_two_layers_share_are_held_once() -> None:
    nodes = [conv("a", "x", "w"), conv("b", "a_y", "w")]
    read = plain(graph(nodes, {"w": weight(8, 8)}, (1, 8, 4, 4), "b_y"))
    assert least_memory_bytes(fuse(read.model), types_of(read, Precision.FP32)) == 4 * (WEIGHTS + 2 * MAP)


def grouped(groups: int, into: int, kernel: int = 3) -> Layer:
    channels = groups * into
    nodes = [conv("g", "x", "w", group=groups, pads=[kernel // 2] * 4)]
    model = graph(nodes, {"w": weight(channels, into, kernel)}, (1, channels, 4, 4), "g_y")
    (layer,) = fuse(plain(model).model)
    return layer


@pytest.mark.parametrize(
    ("into", "half", "int8"),
    # Tiles of 8 outputs by 16 inputs in FP16, by 32 in INT8: 4 channels of a group fill 4/8 and 4/16, or 4/8 and 4/32.
    [(4, 8, 16), (8, 2, 4), (16, 1, 2), (32, 1, 1), (12, 16 / 9, 32 / 9)],
)
def test_narrow_groups_fill_tiles_with_zeros(into: int, half: float, int8: float) -> None:
    layer = grouped(4, into)
    assert padded_macs(layer, Precision.FP32) == layer.macs
    assert padded_macs(layer, Precision.FP16) / layer.macs == pytest.approx(half)
    assert padded_macs(layer, Precision.INT8) / layer.macs == pytest.approx(int8)


def test_merging_groups_costs_zeros_and_saves_padding() -> None:
    layer = grouped(32, 4)
    # 32 groups of 4 stay, or become 16 of 8, 8 of 16, 4 of 32.
    found = [padded_macs(layer, Precision.FP16, regroup) // layer.macs for regroup in (None, 16, 8, 4)]
    assert found == [8, 4, 4, 8]
    assert padded_macs(layer, Precision.FP32, 8) == 4 * layer.macs
    assert padded_macs(layer, Precision.FP16, 3) == padded_macs(layer, Precision.FP16)


def three_grouped() -> ir.Model:
    """24 groups of 2, 8 groups of 6, and 48 that are depthwise."""
    nodes = [
        conv("a", "x", "wa", group=24, pads=[1] * 4),
        conv("b", "a_y", "wb", group=8),
        conv("c", "b_y", "wc", group=48),
    ]
    weights = {"wa": weight(48, 2, 3), "wb": weight(48, 6), "wc": weight(48, 1)}
    return graph(nodes, weights, (1, 48, 4, 4), "c_y")


@pytest.mark.parametrize("regroup", range(1, 50))
def test_regroup_is_that_of_export(regroup: int) -> None:
    """Against the pass itself: the same layers merged, as much arithmetic, as many bytes; refused where it is not offered."""
    before, model = plain(three_grouped()), three_grouped()
    offered = groups_left(fuse(before.model))
    if regroup not in offered:
        with pytest.raises(UsageError, match="merges nothing"):
            Regroup(regroup)(model)
        return
    Regroup(regroup)(model)
    after = plain(model)
    for old, new in zip(fuse(before.model), fuse(after.model), strict=True):
        for precision in PRECISIONS.values():
            assert padded_macs(old, precision, regroup) == padded_macs(new, precision)
        merged = bytes_moved(new, types_of(after, Precision.FP16))
        assert bytes_moved(old, types_of(before, Precision.FP16), regroup) == merged


def test_groups_left_are_the_divisors_below() -> None:
    assert groups_left(fuse(plain(three_grouped()).model)) == [12, 8, 6, 4, 3, 2, 1]


def test_without_groups_the_taps_are_in_a_row() -> None:
    layer = grouped(1, 3, kernel=7)
    # 147 inputs are filled up to 160, and 3 outputs to 8.
    assert padded_macs(layer, Precision.FP16) == round(layer.macs * 160 / 147 * 8 / 3)


@pytest.mark.parametrize(
    ("groups", "into", "kernel", "reason"),
    [
        (32, 4, 3, ""),
        (32, 16, 1, ""),
        (1, 3, 7, ""),
        (4, 6, 3, "multiples of 4"),
        (8, 8, 1, "kernel of 3 or more"),
        (3, 4, 3, "steps of 8"),
    ],
)
def test_which_grouped_convolutions_int8_takes(groups: int, into: int, kernel: int, reason: str) -> None:
    found = int8_reason(grouped(groups, into, kernel))
    assert (reason in found) if reason else not found


def dense() -> ir.Model:
    nodes = [conv("a", "x", "wa"), conv("b", "a_y", "wb")]
    return graph(nodes, {"wa": weight(64, 64), "wb": weight(64, 64)}, (1, 64, 8, 8), "b_y")


def recommended(model: ir.Model, device: Synthetic) -> Recommendation:
    read = plain(model)
    return recommend(ways_to_export(read, fuse(read.model)), device)


def test_int8_is_recommended_where_it_pays_and_not_where_it_does_not() -> None:
    assert recommended(dense(), Synthetic(1000)).options == "--int8"
    first = graph([conv("a", "x", "w")], {"w": weight(8, 8)}, (1, 8, 8, 8), "a_y")
    # Input and output stay FP32, and memory is all that counts: INT8 saves a few bytes of weights.
    found = recommended(first, Synthetic(0.001))
    assert found.options == "--fp16"
    assert found.estimate
    assert {choice.options for choice in found.choices} == {"--fp16", "--int8"}


def test_merging_is_recommended_where_padding_is_what_costs() -> None:
    nodes = [conv("g", "x", "w", group=32, pads=[1] * 4)]
    found = recommended(graph(nodes, {"w": weight(128, 4, 3)}, (1, 128, 16, 16), "g_y"), Synthetic(1000))
    # By FP16's tiles 16 groups of 8 and 8 of 16 waste the same; fewer weights decide for the first.
    assert found.options == "--fp16 --regroup 16"


@pytest.mark.parametrize(
    ("lower", "options", "undecided"),
    # INT8 is worth it from a tenth on; within 3 % of that it is undecided.
    [
        (0.50, "--int8", ""),
        (0.14, "--int8", ""),
        (0.12, "--int8", "--fp16"),
        (0.105, "--int8", "--fp16"),
        (0.095, "--fp16", "--int8"),
        (0.08, "--fp16", "--int8"),
        (0.06, "--fp16", ""),
        (-0.5, "--fp16", ""),
    ],
)
def test_near_the_threshold_it_is_undecided(lower: float, options: str, undecided: str) -> None:
    found = recommended(dense(), Synthetic(1e6, int8=1 / (1 - lower)))
    assert (found.options, found.undecided) == (options, undecided)
    assert found.reason.startswith("undecided, measure both") == bool(undecided)
    assert f"{undecided} has" in found.reason or not undecided


KEEP = "--int8 --int8-keep-grouped"


@pytest.mark.parametrize(
    ("int8", "regrouped", "best", "undecided"),
    [
        # Against keep's 50: 40 is far lower, and merging must be as far below 40.
        (40, 39, "--int8", ""),
        (40, 30, "--int8 --regroup 8", ""),
        (40, 36.5, "--int8", "--int8 --regroup 8"),
        (40, 35.5, "--int8 --regroup 8", "--int8"),
        # 45.5 is too near to 50; that merging is far enough below 50 is no reason, since it is hardly below 45.5.
        (45.5, 44, KEEP, "--int8"),
        (48, 44, KEEP, "--int8 --regroup 8"),
        (48, 47.5, KEEP, ""),
    ],
)
def test_an_option_must_beat_every_simpler_one(int8: float, regrouped: float, best: str, undecided: str) -> None:
    floors = {"--fp16": 100.0, KEEP: 50.0, "--int8": int8, "--int8 --regroup 8": regrouped}
    assert decide(floors) == (best, undecided)

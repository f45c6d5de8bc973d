"""NVIDIA's rules of DLA, one graph for each that breaks it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from skdeploy.planning.dla import dla_report, refusal
from skdeploy.planning.layers import fuse
from tests.planning.graphs import conv, graph, node, plain, weight


def refused(nodes: list[Any], weights: dict[str, Any], shape: tuple[int, ...] = (1, 8, 16, 16)) -> str:
    read = plain(graph(nodes, weights, shape, nodes[-1].output[0]))
    return refusal(list(read.model.graph)[-1], read.scales)


@pytest.mark.parametrize(
    ("attributes", "kernel", "rule"),
    [
        ({}, 3, ""),
        ({"group": 8}, 1, ""),
        ({"dilations": [32, 32], "pads": [31] * 4}, 2, ""),
        ({"strides": [9, 9]}, 1, "stride must be from 1 to 8"),
        ({"dilations": [33, 33], "pads": [31] * 4}, 2, "dilation must be from 1 to 32"),
        ({"pads": [32] * 4}, 3, "padding must be from 0 to 31"),
        ({"pads": [20] * 4}, 33, "kernel must be from 1 to 32"),
    ],
)
def test_limits_of_convolutions(attributes: dict[str, Any], kernel: int, rule: str) -> None:
    groups = attributes.get("group", 1)
    found = refused([conv("a", "x", "w", **attributes)], {"w": weight(8, 8 // groups, kernel)})
    assert (rule in found) if rule else not found


@pytest.mark.parametrize(
    ("made", "shape", "rule"),
    [
        (node("ReduceMean", "m", "x", "axes"), (1, 8, 7, 7), "only the maximum"),
        (node("GlobalAveragePool", "m", "x"), (1, 8, 7, 7), "only the maximum"),
        (node("ReduceMax", "m", "x", "axes"), (1, 8, 7, 7), ""),
        (node("AveragePool", "m", "x", kernel_shape=[7, 7]), (1, 8, 7, 7), ""),
        (node("AveragePool", "m", "x", kernel_shape=[14, 14]), (1, 8, 14, 14), "window must be from 1 to 8"),
        (node("MaxPool", "m", "x", kernel_shape=[3, 3], strides=[2, 2]), (1, 8, 7, 7), ""),
        (node("Sigmoid", "m", "x"), (1, 8, 1, 1), ""),
        (node("Sigmoid", "m", "x"), (1, 8), "4-D"),
        (node("Softmax", "m", "x", axis=1), (1, 1000, 1, 1), ""),
        (node("Softmax", "m", "x", axis=1), (1, 1025, 1, 1), "at most 1024"),
        (node("Flatten", "m", "x"), (1, 8, 1, 1), "4-D transposes"),
        (node("Relu", "m", "x"), (1, 8193, 1, 1), "8192"),
        (node("Erf", "m", "x"), (1, 8, 1, 1), "no such layer"),
        (node("Concat", "m", "x", "x", axis=1), (1, 8, 2, 2), ""),
        (node("Concat", "m", "x", "x", axis=2), (1, 8, 2, 2), "along the channels"),
        (node("Mul", "m", "x", "x"), (1, 8, 2, 2), ""),
    ],
)
def test_rules_of_other_operators(made: Any, shape: tuple[int, ...], rule: str) -> None:
    weights = {"axes": np.array([2, 3])} if "axes" in made.input else {}
    if made.op_type == "ReduceMean":
        made.attribute.extend(node("ReduceMean", "k", keepdims=1).attribute)
    found = refused([made], weights, shape)
    assert (rule in found) if rule else not found


@pytest.mark.parametrize(("scale", "rule"), [("s", ""), ("t", "equal ranges")])
def test_int8_operands_must_have_one_range(scale: str, rule: str) -> None:
    nodes = [
        node("QuantizeLinear", "q", "x", "s", "z"),
        node("DequantizeLinear", "d", "q_y", "s", "z"),
        node("QuantizeLinear", "p", "x", scale, "z"),
        node("DequantizeLinear", "e", "p_y", scale, "z"),
        node("Add", "a", "d_y", "e_y"),
    ]
    found = refused(nodes, {"s": np.float32(1), "t": np.float32(2), "z": np.int8(0)})
    assert (rule in found) if rule else not found


def test_the_report_counts_shares_and_pieces() -> None:
    nodes = [
        conv("a", "x", "w"),
        node("ReduceMean", "m", "a_y", "axes"),
        conv("b", "m_y", "w"),
        node("Flatten", "f", "b_y"),
        node("Gemm", "g", "f_y", "v"),
    ]
    weights = {"w": weight(8, 8), "axes": np.array([2, 3]), "v": np.ones((8, 8), np.float32)}
    read = plain(graph(nodes, weights, (1, 8, 4, 4), "g_y"))
    report = dla_report(read, fuse(read.model))
    # 64 weights at 16 places, then at one, then the product's 64.
    assert report.eligible_share_of_macs == pytest.approx((64 * 16 + 64) / (64 * 16 + 64 + 64))
    assert (report.eligible_nodes, report.nodes, report.segments, report.static) == (2, 5, 2, True)
    assert [refusal.nodes for refusal in report.refusals] == [("m",), ("f",), ("g",)]

"""developer0hye's SKNet-PyTorch: the paper's network with a biased FC of its own for each branch's logits."""

from __future__ import annotations

from typing import Final

from skdeploy.checkpoints.rules import Implied, Layout, M, Names, S, U, named


def layout(name: str, sk: str) -> Layout:
    """``sk`` is the attribute that holds a unit's selective kernel convolution."""
    network: Names = {"stem": (r"basic_conv\.0", r"basic_conv\.1"), "classifier": "classifier"}
    parts: Names = {
        "reduce": (r"conv1\.0", r"conv1\.1"),
        "sk.branches.{m}": (rf"{sk}\.convs\.{M}\.0", rf"{sk}\.convs\.{M}\.1"),
        "sk.gate.fc1": rf"{sk}\.fc\.0",
        "sk.gate.bn": rf"{sk}\.fc\.1",
        "sk.gate.fc2.{m}": rf"{sk}\.fcs\.{M}",
        "expand": (r"conv3\.0", r"conv3\.1"),
        "shortcut": (r"shortcut\.0", r"shortcut\.1"),
    }
    return Layout(name, named(network, rf"stage_{S}\.{U}", parts, first_stage=1), Implied(family="sknet"))


LAYOUT: Final = layout("developer0hye", "conv2_sk")

"""developer0hye's SKNet-PyTorch: the paper's network with a biased FC of its own for each branch's logits."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from skdeploy.checkpoints.rules import CONV, NORM, Implied, M, Rules, S, U

NAME: Final = "developer0hye"

_UNIT: Final = rf"stage_{S}\.{U}"
_INTO: Final = "stages.{s}.{u}"


def rules(_keys: Collection[str]) -> Rules:
    return rules_with("conv2_sk")


def rules_with(sk: str) -> Rules:
    """``sk`` is the attribute that holds a unit's selective kernel convolution."""
    return Rules(
        (rf"basic_conv\.0\.{CONV}", "stem.conv.{t}"),
        (rf"basic_conv\.1\.{NORM}", "stem.bn.{t}"),
        (rf"{_UNIT}\.conv1\.0\.{CONV}", f"{_INTO}.reduce.conv.{{t}}"),
        (rf"{_UNIT}\.conv1\.1\.{NORM}", f"{_INTO}.reduce.bn.{{t}}"),
        (rf"{_UNIT}\.{sk}\.convs\.{M}\.0\.{CONV}", f"{_INTO}.sk.branches.{{m}}.conv.{{t}}"),
        (rf"{_UNIT}\.{sk}\.convs\.{M}\.1\.{NORM}", f"{_INTO}.sk.branches.{{m}}.bn.{{t}}"),
        (rf"{_UNIT}\.{sk}\.fc\.0\.{CONV}", f"{_INTO}.sk.gate.fc1.{{t}}"),
        (rf"{_UNIT}\.{sk}\.fc\.1\.{NORM}", f"{_INTO}.sk.gate.bn.{{t}}"),
        (rf"{_UNIT}\.{sk}\.fcs\.{M}\.{CONV}", f"{_INTO}.sk.gate.fc2.{{m}}.{{t}}"),
        (rf"{_UNIT}\.conv3\.0\.{CONV}", f"{_INTO}.expand.conv.{{t}}"),
        (rf"{_UNIT}\.conv3\.1\.{NORM}", f"{_INTO}.expand.bn.{{t}}"),
        (rf"{_UNIT}\.shortcut\.0\.{CONV}", f"{_INTO}.shortcut.conv.{{t}}"),
        (rf"{_UNIT}\.shortcut\.1\.{NORM}", f"{_INTO}.shortcut.bn.{{t}}"),
        (rf"classifier\.{CONV}", "classifier.{t}"),
        first_stage=1,
    )


def implied(_keys: Collection[str]) -> Implied:
    return Implied(family="sknet")

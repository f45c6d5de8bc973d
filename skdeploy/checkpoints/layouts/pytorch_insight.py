"""The paper author's PyTorch networks, sk_resnet50 and sk_resnet101 (PytorchInsight, resnet_sk.py).

Two 3x3 branches without dilation, the first dense, the second in 32 groups; a gate C / 16 wide, without a floor.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from skdeploy.checkpoints.rules import CONV, NORM, Implied, Rules, S, U

NAME: Final = "PytorchInsight"

_UNIT: Final = rf"layer{S}\.{U}"
_INTO: Final = "stages.{s}.{u}"


def rules(_keys: Collection[str]) -> Rules:
    return Rules(
        (rf"conv1\.{CONV}", "stem.conv.{t}"),
        (rf"bn1\.{NORM}", "stem.bn.{t}"),
        (rf"{_UNIT}\.conv1\.{CONV}", f"{_INTO}.reduce.conv.{{t}}"),
        (rf"{_UNIT}\.bn1\.{NORM}", f"{_INTO}.reduce.bn.{{t}}"),
        (rf"{_UNIT}\.conv2\.{CONV}", f"{_INTO}.sk.branches.0.conv.{{t}}"),
        (rf"{_UNIT}\.bn2\.{NORM}", f"{_INTO}.sk.branches.0.bn.{{t}}"),
        (rf"{_UNIT}\.conv2g\.{CONV}", f"{_INTO}.sk.branches.1.conv.{{t}}"),
        (rf"{_UNIT}\.bn2g\.{NORM}", f"{_INTO}.sk.branches.1.bn.{{t}}"),
        (rf"{_UNIT}\.conv_fc1\.{CONV}", f"{_INTO}.sk.gate.fc1.{{t}}"),
        (rf"{_UNIT}\.bn_fc1\.{NORM}", f"{_INTO}.sk.gate.bn.{{t}}"),
        (rf"{_UNIT}\.conv_fc2\.{CONV}", f"{_INTO}.sk.gate.fc2.{{t}}"),
        (rf"{_UNIT}\.conv3\.{CONV}", f"{_INTO}.expand.conv.{{t}}"),
        (rf"{_UNIT}\.bn3\.{NORM}", f"{_INTO}.expand.bn.{{t}}"),
        (rf"{_UNIT}\.downsample\.0\.{CONV}", f"{_INTO}.shortcut.conv.{{t}}"),
        (rf"{_UNIT}\.downsample\.1\.{NORM}", f"{_INTO}.shortcut.bn.{{t}}"),
        (rf"fc\.{CONV}", "classifier.{t}"),
        first_stage=1,
    )


def implied(_keys: Collection[str]) -> Implied:
    return Implied(family="resnet", dilations=(1, 1))

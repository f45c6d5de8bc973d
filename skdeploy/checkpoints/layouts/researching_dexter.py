"""ResearchingDexter's SKNet_pytorch: the paper's network; its forward ends in a softmax, which is not deployed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from skdeploy.checkpoints.rules import CONV, NORM, Implied, M, Rules, S, U

NAME: Final = "ResearchingDexter"

_UNIT: Final = rf"layer{S}\.{U}"
_INTO: Final = "stages.{s}.{u}"


def rules(_keys: Collection[str]) -> Rules:
    return Rules(
        (rf"conv\.0\.{CONV}", "stem.conv.{t}"),
        (rf"conv\.1\.{NORM}", "stem.bn.{t}"),
        (rf"{_UNIT}\.conv1\.0\.{CONV}", f"{_INTO}.reduce.conv.{{t}}"),
        (rf"{_UNIT}\.conv1\.1\.{NORM}", f"{_INTO}.reduce.bn.{{t}}"),
        (rf"{_UNIT}\.conv2\.conv\.{M}\.0\.{CONV}", f"{_INTO}.sk.branches.{{m}}.conv.{{t}}"),
        (rf"{_UNIT}\.conv2\.conv\.{M}\.1\.{NORM}", f"{_INTO}.sk.branches.{{m}}.bn.{{t}}"),
        (rf"{_UNIT}\.conv2\.fc1\.0\.{CONV}", f"{_INTO}.sk.gate.fc1.{{t}}"),
        (rf"{_UNIT}\.conv2\.fc1\.1\.{NORM}", f"{_INTO}.sk.gate.bn.{{t}}"),
        (rf"{_UNIT}\.conv2\.fc2\.{CONV}", f"{_INTO}.sk.gate.fc2.{{t}}"),
        (rf"{_UNIT}\.conv3\.0\.{CONV}", f"{_INTO}.expand.conv.{{t}}"),
        (rf"{_UNIT}\.conv3\.1\.{NORM}", f"{_INTO}.expand.bn.{{t}}"),
        (rf"{_UNIT}\.downsample\.0\.{CONV}", f"{_INTO}.shortcut.conv.{{t}}"),
        (rf"{_UNIT}\.downsample\.1\.{NORM}", f"{_INTO}.shortcut.bn.{{t}}"),
        (rf"fc\.{CONV}", "classifier.{t}"),
        first_stage=1,
    )


def implied(_keys: Collection[str]) -> Implied:
    return Implied(family="sknet", softmax=True)

"""pytorchcv's sknet50, sknet101 and sknet152 (imgclsmob, MIT). Its average pool is fixed at 7; ours is global."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from skdeploy.checkpoints.rules import CONV, NORM, PART, Implied, M, Rules, S, U

NAME: Final = "pytorchcv"

_UNIT: Final = rf"features\.stage{S}\.unit{U}"
_INTO: Final = "stages.{s}.{u}"


def rules(_keys: Collection[str]) -> Rules:
    return Rules(
        (rf"features\.init_block\.conv\.{PART}\.{NORM}", "stem.{p}.{t}"),
        (rf"{_UNIT}\.body\.conv1\.{PART}\.{NORM}", f"{_INTO}.reduce.{{p}}.{{t}}"),
        (rf"{_UNIT}\.body\.conv2\.branches\.branch{M}\.{PART}\.{NORM}", f"{_INTO}.sk.branches.{{m}}.{{p}}.{{t}}"),
        (rf"{_UNIT}\.body\.conv2\.fc1\.conv\.{CONV}", f"{_INTO}.sk.gate.fc1.{{t}}"),
        (rf"{_UNIT}\.body\.conv2\.fc1\.bn\.{NORM}", f"{_INTO}.sk.gate.bn.{{t}}"),
        (rf"{_UNIT}\.body\.conv2\.fc2\.{CONV}", f"{_INTO}.sk.gate.fc2.{{t}}"),
        (rf"{_UNIT}\.body\.conv3\.{PART}\.{NORM}", f"{_INTO}.expand.{{p}}.{{t}}"),
        (rf"{_UNIT}\.identity_conv\.{PART}\.{NORM}", f"{_INTO}.shortcut.{{p}}.{{t}}"),
        (rf"output\.{CONV}", "classifier.{t}"),
        first_stage=1,
        first_unit=1,
        first_branch=2,
    )


def implied(_keys: Collection[str]) -> Implied:
    return Implied(family="sknet")

"""SimCLRv2's ResNets with selective kernels, in the PyTorch port's keys: one convolution of 2 C channels, split in streams."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from skdeploy.checkpoints.rules import CONV, NORM, Implied, Rules, S, U

NAME: Final = "SimCLRv2"

_UNIT: Final = rf"net\.{S}\.blocks\.{U}"
_INTO: Final = "stages.{s}.{u}"


def rules(_keys: Collection[str]) -> Rules:
    return Rules(
        (rf"net\.0\.0\.{CONV}", "stem.0.conv.{t}"),
        (rf"net\.0\.1\.0\.{NORM}", "stem.0.bn.{t}"),
        (rf"net\.0\.2\.{CONV}", "stem.1.conv.{t}"),
        (rf"net\.0\.3\.0\.{NORM}", "stem.1.bn.{t}"),
        (rf"net\.0\.4\.{CONV}", "stem.2.conv.{t}"),
        (rf"net\.0\.5\.0\.{NORM}", "stem.2.bn.{t}"),
        (rf"{_UNIT}\.projection\.shortcut\.2\.{CONV}", f"{_INTO}.shortcut.project.conv.{{t}}"),
        (rf"{_UNIT}\.projection\.bn\.0\.{NORM}", f"{_INTO}.shortcut.project.bn.{{t}}"),
        (rf"{_UNIT}\.net\.0\.{CONV}", f"{_INTO}.reduce.conv.{{t}}"),
        (rf"{_UNIT}\.net\.1\.0\.{NORM}", f"{_INTO}.reduce.bn.{{t}}"),
        (rf"{_UNIT}\.net\.2\.main_conv\.0\.{CONV}", f"{_INTO}.sk.streams.conv.{{t}}"),
        (rf"{_UNIT}\.net\.2\.main_conv\.1\.0\.{NORM}", f"{_INTO}.sk.streams.bn.{{t}}"),
        (rf"{_UNIT}\.net\.2\.mixing_conv\.0\.{CONV}", f"{_INTO}.sk.gate.fc1.{{t}}"),
        (rf"{_UNIT}\.net\.2\.mixing_conv\.1\.0\.{NORM}", f"{_INTO}.sk.gate.bn.{{t}}"),
        (rf"{_UNIT}\.net\.2\.mixing_conv\.2\.{CONV}", f"{_INTO}.sk.gate.fc2.{{t}}"),
        (rf"{_UNIT}\.net\.3\.{CONV}", f"{_INTO}.expand.conv.{{t}}"),
        (rf"{_UNIT}\.net\.4\.0\.{NORM}", f"{_INTO}.expand.bn.{{t}}"),
        (rf"fc\.{CONV}", "classifier.{t}"),
        first_stage=1,
    )


def implied(_keys: Collection[str]) -> Implied:
    return Implied(family="resnet", dilations=(1, 1), shortcut="padded_avg_pool")

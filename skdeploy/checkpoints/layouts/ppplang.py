"""pppLang's SKNet: real 5x5 second branch, biases, two FCs without anything between them, a norm after select.

Units alternate with ReLUs in a stage's Sequential, so unit k is at 2 k; stem and every stage keep that author's strides.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from skdeploy.checkpoints.rules import CONV, NORM, Implied, M, Rules, S, U

NAME: Final = "pppLang"

_UNIT: Final = rf"stage_{S}\.{U}"
_FEAS: Final = rf"{_UNIT}\.feas"
_INTO: Final = "stages.{s}.{u}"


def rules(_keys: Collection[str]) -> Rules:
    return Rules(
        (rf"basic_conv\.0\.{CONV}", "stem.conv.{t}"),
        (rf"basic_conv\.1\.{NORM}", "stem.bn.{t}"),
        (rf"{_FEAS}\.0\.{CONV}", f"{_INTO}.reduce.conv.{{t}}"),
        (rf"{_FEAS}\.1\.{NORM}", f"{_INTO}.reduce.bn.{{t}}"),
        (rf"{_FEAS}\.2\.convs\.{M}\.0\.{CONV}", f"{_INTO}.sk.branches.{{m}}.conv.{{t}}"),
        (rf"{_FEAS}\.2\.convs\.{M}\.1\.{NORM}", f"{_INTO}.sk.branches.{{m}}.bn.{{t}}"),
        (rf"{_FEAS}\.2\.fc\.{CONV}", f"{_INTO}.sk.gate.fc1.{{t}}"),
        (rf"{_FEAS}\.2\.fcs\.{M}\.{CONV}", f"{_INTO}.sk.gate.fc2.{{m}}.{{t}}"),
        (rf"{_FEAS}\.3\.{NORM}", f"{_INTO}.norm.{{t}}"),
        (rf"{_FEAS}\.4\.{CONV}", f"{_INTO}.expand.conv.{{t}}"),
        (rf"{_FEAS}\.5\.{NORM}", f"{_INTO}.expand.bn.{{t}}"),
        (rf"{_UNIT}\.shortcut\.0\.{CONV}", f"{_INTO}.shortcut.conv.{{t}}"),
        (rf"{_UNIT}\.shortcut\.1\.{NORM}", f"{_INTO}.shortcut.bn.{{t}}"),
        (rf"classifier\.0\.{CONV}", "classifier.{t}"),
        first_stage=1,
        unit_step=2,
    )


def implied(_keys: Collection[str]) -> Implied:
    return Implied(family="linear_sknet", dilations=(1, 1, 1), strides=(2, 2, 2), stem_stride=1, max_pool=False)

"""timm's skresnet18, skresnet34, skresnet50, skresnet50d and skresnext50_32x4d (timm/models/sknet.py, Apache-2.0)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from skdeploy.checkpoints.rules import CONV, NORM, PART, Implied, M, Rules, S, U

NAME: Final = "timm"

_UNIT: Final = rf"layer{S}\.{U}"
_INTO: Final = "stages.{s}.{u}"
_T: Final = NORM  # of a convolution or a normalisation


def rules(keys: Collection[str]) -> Rules:
    """A bottleneck's selective kernel convolution is ``conv2``, a basic block's ``conv1``."""
    plain_stem = [(rf"conv1\.{CONV}", "stem.conv.{t}"), (rf"bn1\.{NORM}", "stem.bn.{t}")]
    deep_stem = [
        (rf"conv1\.0\.{CONV}", "stem.0.conv.{t}"),
        (rf"conv1\.1\.{NORM}", "stem.0.bn.{t}"),
        (rf"conv1\.3\.{CONV}", "stem.1.conv.{t}"),
        (rf"conv1\.4\.{NORM}", "stem.1.bn.{t}"),
        (rf"conv1\.6\.{CONV}", "stem.2.conv.{t}"),
        (rf"bn1\.{NORM}", "stem.2.bn.{t}"),
    ]
    plain_shortcut = [
        (rf"{_UNIT}\.downsample\.0\.{CONV}", f"{_INTO}.shortcut.conv.{{t}}"),
        (rf"{_UNIT}\.downsample\.1\.{NORM}", f"{_INTO}.shortcut.bn.{{t}}"),
    ]
    pooled_shortcut = [  # 0 is the pool
        (rf"{_UNIT}\.downsample\.1\.{CONV}", f"{_INTO}.shortcut.project.conv.{{t}}"),
        (rf"{_UNIT}\.downsample\.2\.{NORM}", f"{_INTO}.shortcut.project.bn.{{t}}"),
    ]
    return Rules(
        *(deep_stem if _is_d(keys) else plain_stem),
        *(pooled_shortcut if _is_d(keys) else plain_shortcut),
        (rf"{_UNIT}\.conv[12]\.paths\.{M}\.{PART}\.{_T}", f"{_INTO}.sk.branches.{{m}}.{{p}}.{{t}}"),
        (rf"{_UNIT}\.conv[12]\.attn\.fc_reduce\.{CONV}", f"{_INTO}.sk.gate.fc1.{{t}}"),
        (rf"{_UNIT}\.conv[12]\.attn\.bn\.{NORM}", f"{_INTO}.sk.gate.bn.{{t}}"),
        (rf"{_UNIT}\.conv[12]\.attn\.fc_select\.{CONV}", f"{_INTO}.sk.gate.fc2.{{t}}"),
        (rf"{_UNIT}\.conv1\.{PART}\.{_T}", f"{_INTO}.reduce.{{p}}.{{t}}"),
        (rf"{_UNIT}\.conv[23]\.{PART}\.{_T}", f"{_INTO}.expand.{{p}}.{{t}}"),
        (rf"fc\.{CONV}", "classifier.{t}"),
        first_stage=1,
    )


def implied(keys: Collection[str]) -> Implied:
    """Paths are split where a path sees half of the channels: no registered model has two groups."""
    return Implied(family="resnet", split_input=True, shortcut="avg_pool" if _is_d(keys) else "conv")


def _is_d(keys: Collection[str]) -> bool:
    return "conv1.6.weight" in keys

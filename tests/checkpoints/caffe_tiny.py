"""The paper's Caffe network made small, with all that is odd in the official ones, and the card that misses some of it."""

from __future__ import annotations

from typing import Final

import numpy as np

from skdeploy.core.architecture import BranchSpec, SelectiveKernelSpec, SKNetSpec, StageSpec, StemSpec
from skdeploy.core.spec import ModelSpec
from skdeploy.zoo.cardless import spec_without_card
from tests.checkpoints.caffe_reference import Array, Stage, sknet

# conv3's gate is half as wide as the rule of its neighbours gives, as in sknet101.
STAGES: Final = (Stage(1, 8, 16, 1, 8), Stage(2, 16, 32, 2, 4), Stage(1, 16, 32, 2, 8), Stage(2, 32, 64, 2, 8))
LAYERS: Final = sknet(8, STAGES, groups=4, classes=7)
SIZE: Final = (70, 56)  # 35 x 28 after the stem: Caffe's pool gives 17 x 14, PyTorch's 18 x 14
# Of the largest logit. Float32 keeps 6e-8 of a number; over sums of a few hundred products and some 30 layers the errors add up
# to about 2e-6, which is also what the original implementations differ from their own float64 by.
TOLERANCE: Final = 1e-5


def card() -> ModelSpec:
    """The card that someone would write from the paper: PyTorch's pool, and the same gate rule everywhere."""
    network = SKNetSpec(
        stem=StemSpec(channels=8, kernel=7, stride=2, max_pool=True),
        stages=tuple(
            StageSpec(units=each.units, middle_channels=each.middle, out_channels=each.out, stride=each.stride)
            for each in STAGES
        ),
        selective_kernel=SelectiveKernelSpec(
            branches=tuple(BranchSpec(kernel=3, dilation=dilation, groups=4) for dilation in (1, 2)), min_width=8
        ),
        classes=7,
    )
    return spec_without_card("tiny", network, 3, SIZE)


def distance(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())

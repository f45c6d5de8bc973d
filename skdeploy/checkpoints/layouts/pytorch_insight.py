"""The paper author's PyTorch networks, sk_resnet50 and sk_resnet101 (PytorchInsight, resnet_sk.py).

Two 3x3 branches without dilation, the first dense, the second in 32 groups; a gate C / 16 wide, without a floor.
"""

from __future__ import annotations

from typing import Final

from skdeploy.checkpoints.rules import Implied, Layout, S, U, named

_RULES: Final = named(
    {"stem": ("conv1", "bn1"), "classifier": "fc"},
    rf"layer{S}\.{U}",
    {
        "reduce": ("conv1", "bn1"),
        "sk.branches.0": ("conv2", "bn2"),
        "sk.branches.1": ("conv2g", "bn2g"),
        "sk.gate.fc1": "conv_fc1",
        "sk.gate.bn": "bn_fc1",
        "sk.gate.fc2": "conv_fc2",
        "expand": ("conv3", "bn3"),
        "shortcut": (r"downsample\.0", r"downsample\.1"),
    },
    first_stage=1,
)
LAYOUT: Final = Layout("PytorchInsight", _RULES, Implied("resnet", dilations=(1, 1)))

"""pytorchcv's sknet50, sknet101 and sknet152 (imgclsmob, MIT). Its average pool is fixed at 7; ours is global."""

from __future__ import annotations

from typing import Final

from skdeploy.checkpoints.rules import PART, Implied, Layout, M, S, U, named

_RULES: Final = named(
    {"stem.{p}": rf"features\.init_block\.conv\.{PART}", "classifier": "output"},
    rf"features\.stage{S}\.unit{U}",
    {
        "reduce.{p}": rf"body\.conv1\.{PART}",
        "sk.branches.{m}.{p}": rf"body\.conv2\.branches\.branch{M}\.{PART}",
        "sk.gate.fc1": r"body\.conv2\.fc1\.conv",
        "sk.gate.bn": r"body\.conv2\.fc1\.bn",
        "sk.gate.fc2": r"body\.conv2\.fc2",
        "expand.{p}": rf"body\.conv3\.{PART}",
        "shortcut.{p}": rf"identity_conv\.{PART}",
    },
    first_stage=1,
    first_unit=1,
    first_branch=2,
)
LAYOUT: Final = Layout("pytorchcv", _RULES, Implied("sknet"))

"""ResearchingDexter's SKNet_pytorch: the paper's network; its forward ends in a softmax, which is not deployed."""

from __future__ import annotations

from typing import Final

from skdeploy.checkpoints.rules import Implied, Layout, M, S, U, named

_RULES: Final = named(
    {"stem": (r"conv\.0", r"conv\.1"), "classifier": "fc"},
    rf"layer{S}\.{U}",
    {
        "reduce": (r"conv1\.0", r"conv1\.1"),
        "sk.branches.{m}": (rf"conv2\.conv\.{M}\.0", rf"conv2\.conv\.{M}\.1"),
        "sk.gate.fc1": r"conv2\.fc1\.0",
        "sk.gate.bn": r"conv2\.fc1\.1",
        "sk.gate.fc2": r"conv2\.fc2",
        "expand": (r"conv3\.0", r"conv3\.1"),
        "shortcut": (r"downsample\.0", r"downsample\.1"),
    },
    first_stage=1,
)
LAYOUT: Final = Layout("ResearchingDexter", _RULES, Implied("sknet", softmax=True))

"""pppLang's SKNet: real 5x5 second branch, biases, two FCs without anything between them, a norm after select.

Units alternate with ReLUs in a stage's Sequential, so unit k is at 2 k; stem and every stage keep that author's strides.
"""

from __future__ import annotations

from typing import Final

from skdeploy.checkpoints.rules import Implied, Layout, M, S, U, named

_RULES: Final = named(
    {"stem": (r"basic_conv\.0", r"basic_conv\.1"), "classifier": r"classifier\.0"},
    rf"stage_{S}\.{U}",
    {
        "reduce": (r"feas\.0", r"feas\.1"),
        "sk.branches.{m}": (rf"feas\.2\.convs\.{M}\.0", rf"feas\.2\.convs\.{M}\.1"),
        "sk.gate.fc1": r"feas\.2\.fc",
        "sk.gate.fc2.{m}": rf"feas\.2\.fcs\.{M}",
        "norm": r"feas\.3",
        "expand": (r"feas\.4", r"feas\.5"),
        "shortcut": (r"shortcut\.0", r"shortcut\.1"),
    },
    first_stage=1,
    unit_step=2,
)
_IMPLIED: Final = Implied("linear_sknet", dilations=(1, 1, 1), strides=(2, 2, 2), stem_stride=1, max_pool=False)
LAYOUT: Final = Layout("pppLang", _RULES, _IMPLIED)

"""SimCLRv2's ResNets with selective kernels, in the PyTorch port's keys: one convolution of 2 C channels, split in streams."""

from __future__ import annotations

from typing import Final

from skdeploy.checkpoints.rules import Implied, Layout, S, U, named

_RULES: Final = named(
    {
        "stem.0": (r"net\.0\.0", r"net\.0\.1\.0"),
        "stem.1": (r"net\.0\.2", r"net\.0\.3\.0"),
        "stem.2": (r"net\.0\.4", r"net\.0\.5\.0"),
        "classifier": "fc",
    },
    rf"net\.{S}\.blocks\.{U}",
    {
        "shortcut.project": (r"projection\.shortcut\.2", r"projection\.bn\.0"),
        "reduce": (r"net\.0", r"net\.1\.0"),
        "sk.streams": (r"net\.2\.main_conv\.0", r"net\.2\.main_conv\.1\.0"),
        "sk.gate.fc1": r"net\.2\.mixing_conv\.0",
        "sk.gate.bn": r"net\.2\.mixing_conv\.1\.0",
        "sk.gate.fc2": r"net\.2\.mixing_conv\.2",
        "expand": (r"net\.3", r"net\.4\.0"),
    },
    first_stage=1,
)
LAYOUT: Final = Layout("SimCLRv2", _RULES, Implied("resnet", dilations=(1, 1), shortcut="padded_avg_pool"))

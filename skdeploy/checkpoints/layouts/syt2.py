"""syt2's SKNet: developer0hye's, with the selective kernel convolution under another name."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from skdeploy.checkpoints.layouts import developer0hye
from skdeploy.checkpoints.rules import Implied, Rules

NAME: Final = "syt2"


def rules(_keys: Collection[str]) -> Rules:
    return developer0hye.rules_with("conv2")


def implied(keys: Collection[str]) -> Implied:
    return developer0hye.implied(keys)

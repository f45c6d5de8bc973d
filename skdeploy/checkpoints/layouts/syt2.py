"""syt2's SKNet: developer0hye's, with the selective kernel convolution under another name."""

from __future__ import annotations

from typing import Final

from skdeploy.checkpoints.layouts import developer0hye

LAYOUT: Final = developer0hye.layout("syt2", "conv2")

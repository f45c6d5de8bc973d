"""The checkpoints that there are in the wild, one module each: what its keys mean, and what its forward does besides."""

from __future__ import annotations

from typing import Final

from skdeploy.checkpoints.layouts import (
    caffe,
    developer0hye,
    ppplang,
    pytorch_insight,
    pytorchcv,
    researching_dexter,
    simclr,
    syt2,
    timm,
)
from skdeploy.checkpoints.rules import Layout

_MODULES: Final = (timm, pytorchcv, pytorch_insight, developer0hye, syt2, researching_dexter, ppplang, simclr, caffe)
# A new layout is one module, and its name above.
LAYOUTS: Final[dict[str, Layout]] = {module.LAYOUT.name: module.LAYOUT for module in _MODULES}

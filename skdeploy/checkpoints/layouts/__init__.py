"""The checkpoints that there are in the wild, one module each: what its keys mean, and what its forward does besides."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Protocol, cast

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
from skdeploy.checkpoints.rules import Implied, Rules


class Layout(Protocol):
    """One implementation's keys."""

    NAME: str

    def rules(self, keys: Collection[str], /) -> Rules: ...
    def implied(self, keys: Collection[str], /) -> Implied: ...


_MODULES: Final = (timm, pytorchcv, pytorch_insight, developer0hye, syt2, researching_dexter, ppplang, simclr, caffe)
# A new layout is one module, and its name above.
LAYOUTS: Final = {module.NAME: cast(Layout, module) for module in _MODULES}

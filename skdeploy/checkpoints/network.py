"""A network with its weights, built when it is first asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from skdeploy.core.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Network:
    """A spec with its canonical weights; the module is built when a stage first asks for it: a resumed export builds none."""

    spec: ModelSpec
    weights: Path

    @cached_property
    def module(self) -> nn.Module:
        from skdeploy.checkpoints.load import load_network

        return load_network(self.spec, self.weights)


@dataclass(frozen=True)
class OwnNetwork:
    """A module that a function of the user's own built."""

    spec: ModelSpec
    module: nn.Module

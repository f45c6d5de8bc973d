"""The tiny network that INT8 is made of: its spec, and its graph as TorchScript's exporter writes it."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from skdeploy.core.spec import ModelSpec
from tests.conftest import FAST, TinySpec
from tests.graphs.networks import card, traced


@pytest.fixture
def spec(tiny_spec: TinySpec) -> ModelSpec:
    return card(tiny_spec())


@pytest.fixture
def graph(spec: ModelSpec) -> ir.Model:
    return traced(spec, FAST)

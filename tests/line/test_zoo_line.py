"""Every card of the zoo goes through the whole line: ONNX, simplified, FP16, engine, parity. Some ten seconds a card."""

from __future__ import annotations

from pathlib import Path

import pytest

from skdeploy.core.spec import Precision
from skdeploy.line.export import export
from skdeploy.line.options import ExportOptions
from skdeploy.zoo.cards import list_cards

CARDS = [spec.name for spec, _ in list_cards()]


@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
def test_every_card_is_verified_in_fp16(name: str, tmp_path: Path) -> None:
    result = export(ExportOptions(name, precision=Precision.FP16, output=tmp_path / "bundle"))
    assert result.bundle.manifest.verdict == "verified"
    assert result.parity.batch_invariance is not None
    graphs = [comparison for comparison in result.parity.comparisons if comparison.backend == "onnxruntime"]
    assert [comparison.verdict for comparison in graphs] == ["pass"] * 3

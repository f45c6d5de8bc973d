"""Figures of pairs are measured once for each artifact, kept for this user, and checked before they are used again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from skdeploy.accuracy.evaluate import EvaluationOptions
from skdeploy.accuracy.evaluate_quality import evaluate_quality
from skdeploy.accuracy.kept import Kept
from skdeploy.accuracy.quality import Quality
from skdeploy.accuracy.quality_rows import CHECKED
from skdeploy.core.spec import Precision
from skdeploy.images.audit_report import Unreadable
from skdeploy.line.export import export
from skdeploy.line.options import ExportOptions
from skdeploy.passes.trace_options import TraceOptions
from tests.accuracy.test_reuse import ran as ran
from tests.networks import sk_unet
from tests.notes import Notes
from tests.pairs import save_masks

pytestmark = pytest.mark.usefixtures("cache")
PAIRS = 20
METRIC = "tests.accuracy.test_quality_rows:right"


def right(outputs: dict[str, NDArray[Any]], target: NDArray[Any]) -> float:
    return float((outputs["output"].argmax(0) == target).mean())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained SK-UNet in FP16, and pairs beside it."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "card.toml").write_text(sk_unet.CARD, encoding="utf-8")
    save_masks(folder / "pairs", PAIRS)
    options = ExportOptions(
        "tests.networks.sk_unet:trained",
        Precision.FP16,
        card=str(folder / "card.toml"),
        images=folder / "pairs" / "images",
        trace=TraceOptions(exporter="torchscript"),
        target="onnx",
        output=folder / "bundle",
    )
    export(options)
    return folder / "bundle"


def evaluated(bundle: Path, tell: Notes | None = None, **options: Any) -> Quality:
    return evaluate_quality(bundle, EvaluationOptions(bundle.parent / "pairs", **options), tell)


def figures(quality: Quality) -> list[Any]:
    return [[report.model_dump() for report in quality.artifacts], [drop.model_dump() for drop in quality.drops]]


def test_a_second_evaluation_runs_a_few_pairs_only_and_says_the_same(bundle: Path, ran: dict[str, int]) -> None:
    first = evaluated(bundle)
    assert ran == {"model.onnx": PAIRS, "model.fp16.onnx": PAIRS}
    ran.clear()
    tell = Notes()
    again = evaluated(bundle, tell)
    assert ran == {"model.onnx": CHECKED, "model.fp16.onnx": CHECKED}
    assert again.reused == PAIRS
    assert figures(again) == figures(first)
    assert any("are reused" in note for note in tell.notes)
    ran.clear()
    assert figures(evaluated(bundle, fresh=True)) == figures(first)
    assert ran == {"model.onnx": PAIRS, "model.fp16.onnx": PAIRS}


def test_an_interrupted_run_goes_on(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = figures(evaluated(bundle, fresh=True))
    real = Kept.save
    left = [4]

    def save(self: Kept, columns: Mapping[str, NDArray[Any]], done: int, unreadable: Mapping[int, Unreadable]) -> bool:
        saved = real(self, columns, done, unreadable)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return saved

    with monkeypatch.context() as patch:
        patch.setattr("skdeploy.accuracy.quality_rows.SAVE_SECONDS", 0.0)
        patch.setattr(Kept, "save", save)
        with pytest.raises(KeyboardInterrupt):
            evaluated(bundle, fresh=True, batch=4)
    tell = Notes()
    found = evaluated(bundle, tell, batch=4)
    assert found.reused == 8
    assert figures(found) == expected
    assert any("interrupted after 8 of 20" in note for note in tell.notes)


def test_what_was_altered_since_is_not_used(bundle: Path, cache: Path) -> None:
    expected = figures(evaluated(bundle))
    for file in cache.rglob("*.npz"):
        with np.load(file) as content:
            arrays = {name: content[name] + (100 if name == "mIoU" else 0) for name in content.files}
        np.savez(file, **arrays)
    tell = Notes()
    found = evaluated(bundle, tell)
    assert found.reused == 0
    assert figures(found) == expected
    assert any("gives another mIoU" in note for note in tell.notes)


def test_other_targets_are_measured_anew(bundle: Path, ran: dict[str, int], tmp_path: Path) -> None:
    evaluated(bundle)
    ran.clear()
    save_masks(tmp_path / "pairs", PAIRS, moved=1)
    evaluate_quality(bundle, EvaluationOptions(tmp_path / "pairs"))
    assert ran["model.onnx"] == PAIRS


def test_figures_of_code_of_the_users_own_are_not_kept(bundle: Path, cache: Path) -> None:
    evaluated(bundle, metric=METRIC)
    assert not list(cache.rglob("*.npz"))

"""``skdeploy plan`` at the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest

from skdeploy.cli.plan import _share
from skdeploy.core.precision import PRECISIONS
from tests.cli.conftest import Run
from tests.cli.edited import edited
from tests.planning.graphs import graph, node


def test_json_holds_everything(bundle: Path, run: Run) -> None:
    result = run("plan", bundle, "--device", "agx-orin", "--batch", 4, "--json")
    report = result.json
    assert report["batch"] == 4
    (device,) = report["devices"]
    assert [floor["precision"] for floor in device["floors"]] == list(PRECISIONS)
    own = next(floor for floor in device["floors"] if floor["precision"] == "fp16")
    assert sum(layer["floor_ms"] for layer in device["layers"]) == pytest.approx(own["latency_ms"])
    assert own["images_a_second"] == pytest.approx(4000 / own["latency_ms"])
    assert device["dla"]["refusals"]
    assert device["source"]["url"].startswith("https://")


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_all_that_a_table_has(
    bundle: Path, run: Run, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skdeploy.report.terminal.LOG_WIDTH", width)
    result = run("plan", bundle, "--device", "agx-orin", "--layers")
    assert "…" not in result.out  # where rich cuts off
    assert ("MB moved" in result.out) == (width == 120)  # the narrow one has fewer columns, and says what they are
    for column in ("layer", "what", "type", "limit", "floor ms"):
        assert column in result.out
    assert "…" not in run("plan", bundle, "--device", "all").out


def test_a_batch_that_a_device_has_no_memory_for_is_told(bundle: Path, run: Run) -> None:
    assert "it does not fit" in run("plan", bundle, "--device", "t4,h100", "--batch", 10**6).out
    for batch, fits in {10**6: False, 1: True}.items():
        (device,) = run("plan", bundle, "--device", "t4", "--batch", batch, "--json").json["devices"]
        assert device["fits"] == fits


def test_what_is_not_all_is_not_called_all() -> None:
    assert [_share(share) for share in (0, 0.5, 0.994, 0.9951, 0.99999, 1)] == [
        "0%",
        "50%",
        "99%",
        ">99%",
        ">99%",
        "100%",
    ]


def test_a_plain_onnx_file(bundle: Path, run: Run) -> None:
    assert "fp32, batch 1" in run("plan", bundle / "model.onnx", "--device", "t4").out


def test_it_needs_neither_torch_nor_onnxruntime(bundle: Path) -> None:
    """That is what keeps it under 2 s."""
    code = (
        "import sys; from skdeploy.planning.report import plan; from pathlib import Path;"
        f"plan(Path({str(bundle)!r}), ['all']);"
        "print([name for name in ('torch', 'onnxruntime', 'scipy', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_bundle_without_a_graph(bundle: Path, run: Run) -> None:
    with edited(bundle) as content:
        content["artifacts"] = [each for each in content["artifacts"] if each["format"] != "onnx"]
    result = run("plan", bundle, "--device", "t4")
    assert result.code == 9
    assert "holds no ONNX file" in result.err


def test_a_graph_that_only_reshapes(tmp_path: Path, run: Run) -> None:
    model = graph([node("Flatten", "f", "x")], {}, (1, 8, 4, 4), "f_y")
    ir.save(model, tmp_path / "views.onnx")
    result = run("plan", tmp_path / "views.onnx", "--device", "t4")
    assert result.code == 2
    assert "only reshapes" in result.err

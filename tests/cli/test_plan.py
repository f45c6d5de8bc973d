"""``skdeploy plan`` at the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest

from tests.cli.conftest import Run
from tests.planning.graphs import graph, node


def test_the_floor_of_a_bundle(bundle: Path, run: Run) -> None:
    result = run("plan", bundle, "--device", "orin-nano")
    assert result.code == 0, result.err
    assert "model.fp16.onnx: fp16, batch 1" in result.out
    assert "Jetson Orin Nano 8 GB" in result.out
    assert "a floor, an estimate" in result.out
    assert "estimate: export with" in result.out


def test_json_holds_everything(bundle: Path, run: Run) -> None:
    result = run("plan", bundle, "--device", "agx-orin", "--batch", 4, "--json")
    report = result.json
    assert report["batch"] == 4
    (device,) = report["devices"]
    assert {floor["precision"] for floor in device["floors"]} == {"fp32", "fp16", "int8"}
    own = next(floor for floor in device["floors"] if floor["precision"] == "fp16")
    assert sum(layer["floor_ms"] for layer in device["layers"]) == pytest.approx(own["latency_ms"])
    assert own["images_a_second"] == pytest.approx(4000 / own["latency_ms"])
    assert device["dla"]["refusals"]
    assert device["source"]["url"].startswith("https://")


def test_several_devices_are_rows(bundle: Path, run: Run) -> None:
    result = run("plan", bundle, "--device", "t4", "--device", "a100", "--layers")
    assert result.out.index("t4") < result.out.index("a100")
    assert "every layer on a100" in result.out
    assert "h100" in run("plan", bundle, "--device", "all").out


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


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--device", "orin"), 2, "no device named 'orin'"),
        (("--device", "t4", "--batch", 0), 2, "at least one image"),
        (("--device", "t4", "--batch", -1), 2, "at least one image"),
        (("--device", "t4", "--top", -1), 2, "none or more"),
        (("--device", "t4", "--check"), 2, "add --device this-cpu"),
    ],
)
def test_options_that_make_no_sense(
    arguments: tuple[object, ...], code: int, message: str, bundle: Path, run: Run
) -> None:
    result = run("plan", bundle, *arguments)
    assert result.code == code
    assert message in result.err


def test_a_bundle_without_a_graph(bundle: Path, run: Run) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["artifacts"] = [each for each in manifest["artifacts"] if each["format"] != "onnx"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    result = run("plan", bundle, "--device", "t4")
    assert result.code == 9
    assert "holds no ONNX file" in result.err


def test_a_truncated_graph(bundle: Path, tmp_path: Path, run: Run) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes((bundle / "model.onnx").read_bytes()[:3000])
    result = run("plan", cut, "--device", "t4")
    assert result.code == 9
    assert "cannot be read as ONNX" in result.err or "holds no nodes" in result.err
    (bundle / "model.fp16.onnx").write_bytes((bundle / "model.fp16.onnx").read_bytes()[:3000])
    result = run("plan", bundle, "--device", "t4")
    assert result.code == 9


def test_what_is_no_graph_at_all(tmp_path: Path, run: Run) -> None:
    assert "cannot be read" in run("plan", tmp_path / "none.onnx", "--device", "t4").err
    (tmp_path / "a.txt").touch()
    assert "no bundle and no .onnx file" in run("plan", tmp_path / "a.txt", "--device", "t4").err


def test_a_graph_that_only_reshapes(tmp_path: Path, run: Run) -> None:
    model = graph([node("Flatten", "f", "x")], {}, (1, 8, 4, 4), "f_y")
    ir.save(model, tmp_path / "views.onnx")
    result = run("plan", tmp_path / "views.onnx", "--device", "t4")
    assert result.code == 2
    assert "only reshapes" in result.err


def test_an_open_size_is_a_refusal_with_the_option_that_settles_it(tmp_path: Path, run: Run) -> None:
    model = graph([node("Relu", "r", "x")], {}, ("n", 8, "h", "w"), "r_y")
    ir.save(model, tmp_path / "open.onnx")
    result = run("plan", tmp_path / "open.onnx", "--device", "t4")
    assert result.code == 4
    assert "--imgsz" in result.err
    assert run("plan", tmp_path / "open.onnx", "--device", "t4", "--imgsz", 32).code == 0


def test_this_cpu_is_of_fp32(bundle: Path, run: Run) -> None:
    result = run("plan", bundle / "model.fp16.onnx", "--device", "this-cpu")
    assert result.code == 2
    assert "is not FP32" in result.err

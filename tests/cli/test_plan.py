"""``skdeploy plan`` at the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest

from skdeploy.cli.plan import _share
from tests.cli.conftest import Run
from tests.planning.graphs import graph, node


def test_the_floor_of_a_bundle(bundle: Path, run: Run) -> None:
    result = run("plan", bundle, "--device", "orin-nano")
    assert result.code == 0, result.err
    assert "model.fp16.onnx: fp16, batch 1" in result.out
    assert "Jetson Orin Nano 8 GB" in result.out
    assert "a floor, an estimate" in result.out
    assert "estimate: export with" in result.out
    assert "estimate                 floor ms  images/s" in result.out
    assert "all in fp16 (the graph)" in result.out


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


def test_several_devices_in_one_option_with_their_advice_below(bundle: Path, run: Run) -> None:
    result = run("plan", bundle, "--device", "t4, Orin NX")
    assert result.code == 0, result.err
    heading, columns, *rows = result.out[result.out.index("floors, estimates") :].splitlines()
    assert heading == "floors, estimates: ms a batch of 1; images/s in fp16; the share that a DLA takes"
    assert columns.split() == ["device", "fp32", "ms", "fp16", "ms", "int8", "ms", "images/s", "DLA"]
    assert [row.split()[0] for row in rows[:2]] == ["t4", "orin-nx"]
    advised = [row for row in rows if row.startswith("estimate: export with --")]
    assert ", ".join(row.rpartition(": ")[2] for row in advised).split(", ") == ["t4", "orin-nx"]


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_all_that_a_table_has(
    bundle: Path, run: Run, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skdeploy.cli.console.LOG_WIDTH", width)
    result = run("plan", bundle, "--device", "agx-orin", "--layers")
    assert "…" not in result.out  # where rich cuts off
    assert ("MB moved" in result.out) == (width == 120)  # the narrow one has fewer columns, and says what they are
    for column in ("layer", "what", "type", "limit", "floor ms"):
        assert column in result.out
    assert "…" not in run("plan", bundle, "--device", "all").out


def test_a_batch_that_a_device_has_no_memory_for_is_told(bundle: Path, run: Run) -> None:
    result = run("plan", bundle, "--device", "t4,h100", "--batch", 10**6)
    assert result.code == 0
    assert "t4 has 16 GB, and a batch of 1000000 needs about" in result.out
    assert "it does not fit" in result.out
    assert "does not fit" not in run("plan", bundle, "--device", "t4").out
    fits = {each["name"]: each["fits"] for each in run("plan", bundle, "--device", "t4", "--json").json["devices"]}
    assert fits == {"t4": True}


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


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "no device to plan for"),
        (("--device", "orin"), 2, "no device named 'orin'"),
        (("--device", "ornin-nano"), 2, "did you mean orin-nano"),
        (("--device", "t4,"), 2, "no device named ''"),
        (("--device", "t4", "--imgsz", 33), 2, "is fixed to images of 32x32, not 33x33"),
        (("--device", "t4", "--batch", 0), 2, "at least one image"),
        (("--device", "t4", "--batch", -1), 2, "at least one image"),
        (("--device", "t4", "--top", -1), 2, "none or more"),
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


def test_a_graph_without_a_convolution_has_a_floor_of_bytes_alone(tmp_path: Path, run: Run) -> None:
    ir.save(graph([node("Relu", "r", "x")], {}, (1, 8, 4, 4), "r_y"), tmp_path / "relu.onnx")
    result = run("plan", tmp_path / "relu.onnx", "--device", "t4")
    assert result.code == 0, result.err
    assert "0 million multiply-accumulates an image" in result.out
    (layer,) = (line for line in result.out.splitlines() if line.startswith("r "))
    assert layer.split()[-2:] == ["memory", "0.00000320"]  # 1,024 bytes at 320 GB/s


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

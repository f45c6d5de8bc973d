"""Receipts as a user meets them: written on one machine, carried to another, believed there as far as they go."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from skdeploy.bundle.folder import load_bundle
from skdeploy.bundle.receipts import ReceiptVerdict, cpu_name, read_receipts, write_receipt
from skdeploy.core.spec import Precision
from skdeploy.devices import cuda
from skdeploy.line.verification import ParityReceipt
from skdeploy.parity.report import Comparison
from tests.cli.conftest import Run, Snapshot

ENGINE = "engines/tensorrt_rtx-fp16.engine"
L4 = cuda.CudaDevice(0, "NVIDIA L4", "8.9", 24 << 30)


@pytest.fixture
def with_engine(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, on a machine without a GPU."""
    monkeypatch.setattr(cuda, "devices", lambda: ())
    return Path(shutil.copytree(built, tmp_path / "with-engine"))


def as_written_on_an_l4(bundle: Path, verdict: ReceiptVerdict = "pass") -> Path:
    """The receipt that `skdeploy verify --receipt` writes where there is an L4: the same function writes it."""
    found = load_bundle(bundle)
    engine = found.artifact(ENGINE)
    assert engine is not None
    passed = Comparison(artifact=ENGINE, backend="tensorrt_rtx", precision=Precision.FP16, verdict="pass")
    content = ParityReceipt(reference="torch", dataset="images", dataset_sha256="0" * 64, images=4, comparison=passed)
    with pytest.MonkeyPatch.context() as device:
        device.setattr(cuda, "devices", lambda: (L4,))
        return write_receipt(found, engine, "parity", content, backend="tensorrt_rtx", verdict=verdict)


def test_a_receipt_of_onnx_runtime_is_written_here_and_checked_elsewhere(
    run: Run, bundle: Path, images: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    """The whole way, for real: measured on this CPU, carried in a copy of the bundle, shown by another run."""
    before = snapshot(bundle)
    result = run("verify", bundle, "--images", images, "--receipt")
    assert result.code == 0
    after = snapshot(bundle)
    new = set(after) - set(before)
    assert {name: after[name] for name in before} == before
    assert len(new) == 4  # the folder, and a receipt of each of three graphs
    carried = Path(shutil.copytree(bundle, tmp_path / "carried"))
    shown = run("verify", carried, "--images", images)
    assert shown.code == 0
    assert f"model.fp16.onnx: parity verified on {cpu_name()} (receipt of " in shown.out
    measured = {receipt.artifact: receipt for receipt in read_receipts(load_bundle(carried))}
    content = ParityReceipt.model_validate_json(json.dumps(measured["model.fp16.onnx"].content))
    recorded = run("verify", bundle, "--images", images, "--json").json["parity"]["comparisons"][2]
    assert content.comparison.metrics is not None
    assert content.comparison.metrics.model_dump() == recorded["metrics"]  # the CPU repeats its bits
    assert content.run_to_run is not None


def test_an_engines_receipt_stands_for_the_run_that_is_not_possible_here(
    run: Run, with_engine: Path, images: Path
) -> None:
    path = as_written_on_an_l4(with_engine)
    result = run("verify", with_engine, "--images", images, "--require-engine")
    assert result.code == 0, result.err
    assert f"{ENGINE}: in parity on NVIDIA L4 (receipt of 20" in result.out
    rows = run("verify", with_engine, "--images", images, "--json").json["parity"]["comparisons"]
    (note,) = next(row for row in rows if row["artifact"] == ENGINE)["receipts"]
    assert (note["device"], note["verdict"], note["path"]) == ("NVIDIA L4", "pass", f"receipts/{path.name}")


def test_a_receipt_that_says_fail_makes_verify_fail_and_the_files_for_jobs_say_so(
    run: Run, with_engine: Path, images: Path, tmp_path: Path
) -> None:
    path = as_written_on_an_l4(with_engine, "fail")
    junit, page = tmp_path / "verify.xml", tmp_path / "verify.md"
    result = run("verify", with_engine, "--images", images, "--junit", junit, "--markdown", page, "--json")
    assert result.code == result.json["error"]["exit_code"] == 8
    assert f"{ENGINE}: parity failed on NVIDIA L4, according to the receipt receipts/{path.name}" in result.err
    assert int(ET.parse(junit).getroot().get("failures") or 0) >= 1
    assert page.read_text(encoding="utf-8").startswith("## tiny fp16: failed: ")


def test_an_engine_is_built_again_and_the_difference_told(
    run: Run, with_engine: Path, images: Path, snapshot: Snapshot
) -> None:
    before = snapshot(with_engine)
    result = run("verify", with_engine, "--images", images, "--rebuild")
    assert result.code == 0, result.err
    assert f"{ENGINE}, built again with tensorrt_rtx: " in result.out
    assert "logits not compared: no GPU to run an engine on" in result.out
    assert snapshot(with_engine) == before


def test_an_engine_for_other_gpus_could_not_run_here_and_is_no_failure(
    run: Run, built: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An H200 beside TensorRT-RTX, which does not serve it: nothing is wrong with the bundle."""
    monkeypatch.setattr(cuda, "devices", lambda: (cuda.CudaDevice(0, "NVIDIA H200", "9.0", 141 << 30),))
    monkeypatch.setattr(cuda, "driver_version", lambda: "13.0")
    bundle = Path(shutil.copytree(built, tmp_path / "bundle"))
    page = tmp_path / "verify.md"
    result = run("verify", bundle, "--images", images, "--markdown", page)
    assert result.code == 0, result.err
    assert page.read_text(encoding="utf-8").startswith("## tiny fp16: verified here; the engine has not run yet\n")
    assert "TensorRT-RTX does not run on NVIDIA H200 (compute capability 9.0)" in result.out
    again = run("build", bundle, "--min-batch", 2, "--opt-batch", 4)
    assert again.code == 0, again.err


def test_the_files_for_jobs_say_what_was_checked_and_what_was_not(
    run: Run, with_engine: Path, images: Path, tmp_path: Path
) -> None:
    junit, page = tmp_path / "verify.xml", tmp_path / "verify.md"
    result = run("verify", with_engine, "--images", images, "--junit", junit, "--markdown", page, "--suite", "noise")
    assert result.code == 0
    cases = {case.get("name"): case for case in ET.parse(junit).getroot().iter("testcase")}
    assert cases["model.fp16.onnx on onnxruntime"].find("failure") is None
    assert cases["noise: model.onnx on onnxruntime"].find("failure") is None
    assert cases[f"{ENGINE} on tensorrt_rtx"].find("skipped") is not None
    text = page.read_text(encoding="utf-8")
    assert text.startswith("## tiny fp16: verified here; the engine has not run yet\n")
    assert "there is no receipt from a device" in text
    required = run("verify", with_engine, "--images", images, "--junit", junit, "--require-engine")
    assert required.code == 3
    assert f"  {ENGINE}: no GPU to run an engine on" in required.err
    assert "skdeploy verify --receipt" in required.err
    cases = {case.get("name"): case for case in ET.parse(junit).getroot().iter("testcase")}
    assert cases[f"{ENGINE} on tensorrt_rtx"].find("failure") is not None


@pytest.mark.gpu("tensorrt_rtx")
def test_an_engine_is_verified_on_this_gpu_and_its_receipt_is_believed_without_one(
    run: Run, built: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(built, tmp_path / "copy"))
    assert run("verify", copy, "--images", images, "--suite", "all", "--rebuild", "--receipt").code == 0
    name = cuda.devices()[0].name
    monkeypatch.setattr(cuda, "devices", lambda: ())
    result = run("verify", copy, "--images", images, "--require-engine")
    assert result.code == 0
    assert f"{ENGINE}: in parity on {name} (receipt of " in result.out

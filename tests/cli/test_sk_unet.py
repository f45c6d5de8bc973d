"""Segmentation from the module to the report: a trained SK-UNet in FP16 and INT8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime import InferenceSession

from skdeploy.bundle.folder import load_bundle
from tests.cli.conftest import Run
from tests.networks import sk_unet

MODEL = "tests.networks.sk_unet:trained"
IMAGES = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Pictures that training has not seen, and the card."""
    folder = tmp_path_factory.mktemp("shapes")
    sk_unet.save_images(folder / "images", IMAGES, seed=10_000_000)
    (folder / "card.toml").write_text(sk_unet.CARD, encoding="utf-8")
    return folder / "images", folder / "card.toml"


def exported(run: Run, data: tuple[Path, Path], bundle: Path, *options: object) -> Any:
    images, card = data
    fast = ("--exporter", "torchscript", "--images", images, "--card", card, "--output", bundle)
    return run("export", MODEL, *fast, *options)


def figures_of(bundle: Path, artifact: str) -> dict[str, float]:
    report = json.loads((bundle / "parity.json").read_text(encoding="utf-8"))
    found: dict[str, float] = next(c for c in report["comparisons"] if c["artifact"] == artifact)["metrics"]["figures"]
    return found


def test_half_precision_is_judged_by_masks(run: Run, data: tuple[Path, Path], tmp_path: Path) -> None:
    done = exported(run, data, tmp_path / "bundle", "--fp16", "--target", "onnx")
    assert done.code == 0, done.err
    assert "mIoU" in done.out
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert [str(output) for output in manifest.model.outputs] == ["output: float32[batch, 4, 48, 48]"]
    assert not any("by the shapes" in note for note in manifest.notes)  # the card said it
    figures = figures_of(tmp_path / "bundle", "model.fp16.onnx")
    assert figures["miou"] > 0.98
    assert figures["decided_pixels"] == 1
    pictures, truth = sk_unet.drawn(IMAGES, seed=10_000_000)
    session = InferenceSession(str(tmp_path / "bundle" / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": sk_unet.inputs_of(pictures).numpy()})
    assert np.mean(found.argmax(1) == truth) > 0.85  # a network that segments, not one that agrees with itself


@pytest.mark.slow  # the same stations as above, and an engine
def test_eight_bits_are_judged_by_masks(run: Run, data: tuple[Path, Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    sk_unet.save_images(tmp_path / "calib", 48, seed=20_000_000)
    done = exported(run, data, bundle, "--int8", "--calib", tmp_path / "calib", "--target", "tensorrt_rtx")
    assert done.code == 0, done.err
    figures = figures_of(bundle, "model.int8.onnx")
    assert 0.85 < figures["miou"] < 1  # the task's own limit for INT8; INT8 that changes no pixel would not be INT8
    verified = run("verify", bundle, "--images", data[0], "--suite", "all")
    assert verified.code == 0, verified.err
    assert run("report", bundle).code == 0
    page = (bundle / "report.html").read_text(encoding="utf-8")
    assert "mIoU" in page
    assert "same class" not in page.lower()
    for command in (("evaluate", bundle, "--data", data[0]), ("sensitivity", bundle)):
        refused = run(*command)
        assert refused.code == 2
        assert "->" in refused.err


@pytest.mark.slow
def test_a_card_asks_for_more_and_blame_finds_the_stage(run: Run, data: tuple[Path, Path], tmp_path: Path) -> None:
    strict = tmp_path / "strict.toml"
    limits = "max_rel_error = 0.3\nmin_cosine = 0.95\nmin_sqnr_db = 10.0\nmin_miou = 0.9999\n"
    strict.write_text(sk_unet.CARD.replace("[tolerance]", f"[tolerance.int8]\n{limits}"), encoding="utf-8")
    sk_unet.save_images(tmp_path / "calib", 48, seed=20_000_000)
    where = (data[0], strict), tmp_path / "bundle"
    failed = exported(
        run, *where, "--int8", "--calib", tmp_path / "calib", "--target", "onnx", "--int8-fallback", "fp32"
    )
    assert failed.code == 8
    assert "with the reference, at least 0.9999" in failed.err
    blamed = run("verify", tmp_path / "bundle", "--images", data[0], "--blame")
    assert "model.int8.onnx" in blamed.out

"""``skdeploy inspect --engine`` of a bundle with a real engine of TensorRT-RTX, and of those with none or a wrong one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skdeploy import engines
from skdeploy.devices import cuda
from tests.cli.conftest import Run
from tests.cli.edited import edited_row, forged

ENGINE = "engines/tensorrt_rtx-fp16.engine"
pytestmark = pytest.mark.skipif(bool(engines.obstacle("tensorrt_rtx")[0]), reason="TensorRT-RTX does not build here")


@pytest.fixture
def without_gpu(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle with an engine, where no GPU is."""
    monkeypatch.setattr(cuda, "devices", lambda: ())
    monkeypatch.setattr(cuda, "driver_problem", lambda: "no NVIDIA driver")
    return built


def replace_plan(folder: Path, plan: bytes) -> None:
    """Another plan, and its digest in the manifest: what a digest does not tell."""
    (folder / ENGINE).write_bytes(plan)
    forged(folder, ENGINE)


def test_every_layer_is_listed_when_asked_for(run: Run, without_gpu: Path) -> None:
    brief, full = (run("inspect", without_gpu, "--engine", *more) for more in ((), ("--layers",)))
    layers = run("inspect", without_gpu, "--engine", "--json").json["engines"][0]["proof"]["layers"]
    missing = [layer["name"] for layer in layers if layer["name"] not in full.out]
    assert missing == []
    assert len(full.out.splitlines()) >= len(brief.out.splitlines()) + len(layers)


def test_json_is_one_object_with_shares_and_obstacles(run: Run, without_gpu: Path) -> None:
    (engine,) = run("inspect", without_gpu, "--engine", "--json").json["engines"]
    assert engine["path"] == ENGINE
    assert engine["runs_here"] is False
    assert engine["obstacles"][0]["of"] == "machine"
    assert engine["proof"]["source"] == "definition"
    assert engine["proof"]["as_asked"] is True
    assert engine["proof"]["share_of_macs"] == {"fp16": 1.0}
    assert sum(engine["proof"]["share_of_layers"].values()) == pytest.approx(1)
    assert engine["memory"]["weights_memory_bytes"] > 0
    assert engine["built_for"]["compiler"] == "tensorrt_rtx"


def test_a_convolution_in_a_wider_type_is_shown_and_ends_with_7(run: Run, without_gpu: Path) -> None:
    with edited_row(without_gpu, ENGINE) as row:
        (stem,) = (layer for layer in row["facts"]["proof"]["weighted"] if layer["node"] == "stem.conv/Conv")
        stem["found"] = "fp32"
    shown = run("inspect", without_gpu, "--engine")
    assert shown.code == 7
    assert "stem.conv/Conv (fp32, in the graph fp16)" in shown.err
    assert "1 are wider: stem.conv/Conv" in shown.out
    refusal = run("inspect", without_gpu, "--engine", "--json")
    assert refusal.code == 7
    assert "stem.conv/Conv (fp32" in json.dumps(refusal.json)  # one object, the error


def test_an_engine_without_a_proof_is_no_proven_engine(run: Run, without_gpu: Path) -> None:
    with edited_row(without_gpu, ENGINE) as row:
        del row["facts"]["proof"]
    result = run("inspect", without_gpu, "--engine")
    assert result.code == 7
    assert "has no proof of its precision" in result.err
    assert "build it again" in result.err


def test_the_digest_comes_first(run: Run, without_gpu: Path) -> None:
    plan = without_gpu / ENGINE
    plan.write_bytes(plan.read_bytes()[: plan.stat().st_size // 2])
    result = run("inspect", without_gpu, "--engine")
    assert result.code == 9
    assert ENGINE in result.err


@pytest.mark.parametrize(
    ("at", "byte", "built_with", "reason"),
    [
        (
            24,
            b"\x63",
            "tensorrt_rtx 99.{rest}",
            "no: its header says TensorRT-RTX 99.{rest}, but the manifest says {version}",
        ),
        (0, b"f", "tensorrt {version}", "no: it is a plan of TensorRT, not of TensorRT-RTX"),
        (4, b"\x02", "tensorrt_rtx {version}", "no: no GPU to run an engine on"),
    ],
    ids=["another version", "another compiler", "another serialization"],
)
def test_what_a_plans_header_says_is_told(
    run: Run, without_gpu: Path, at: int, byte: bytes, built_with: str, reason: str
) -> None:
    """The version is the manifest's where the header is of a form that we do not know."""
    version = engines.load("tensorrt_rtx").__version__
    words = {"version": version, "rest": version.partition(".")[2]}
    plan = (without_gpu / ENGINE).read_bytes()
    replace_plan(without_gpu, plan[:at] + byte + plan[at + 1 :])
    result = run("inspect", without_gpu, "--engine")
    assert result.code == 0, result.err
    assert f"built with: {built_with.format(**words)}" in result.out
    assert reason.format(**words) in result.out


def test_a_plan_that_is_not_whole_is_refused_though_its_digest_is_right(run: Run, without_gpu: Path) -> None:
    replace_plan(without_gpu, (without_gpu / ENGINE).read_bytes()[:1_000_000])
    result = run("inspect", without_gpu, "--engine")
    assert result.code == 7
    assert "its header says" in result.err


@pytest.mark.gpu
def test_where_the_engine_runs_its_proof_is_made_again(run: Run, built: Path) -> None:
    (engine,) = run("inspect", built, "--engine", "--json").json["engines"]
    if engine["runs_here"]:
        assert engine["proof"]["source"] == "inspector"

"""``skdeploy inspect --engine`` of a bundle with a real engine of TensorRT-RTX, and of those with none or a wrong one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skdeploy import engines
from skdeploy.devices import cuda
from tests.cli.conftest import Run

ENGINE = "engines/tensorrt_rtx-fp16.engine"
rtx = pytest.mark.skipif(bool(engines.obstacle("tensorrt_rtx")[0]), reason="TensorRT-RTX does not build here")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "devices", lambda: ())
    monkeypatch.setattr(cuda, "driver_problem", lambda: "no NVIDIA driver")


def change_record(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes what the manifest records of the engine."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    (engine,) = (artifact for artifact in manifest["artifacts"] if artifact["path"] == ENGINE)
    change(engine)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def change_details(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    change_record(folder, lambda engine: change(engine["facts"]))


def replace_plan(folder: Path, plan: bytes) -> None:
    """Another plan, and its digest in the manifest: what a digest does not tell."""
    (folder / ENGINE).write_bytes(plan)
    change_record(folder, lambda engine: engine.update(sha256=hashlib.sha256(plan).hexdigest(), size_bytes=len(plan)))


@rtx
@pytest.mark.usefixtures("no_gpu")
def test_every_layer_is_listed_when_asked_for(run: Run, built: Path) -> None:
    brief, full = (run("inspect", built, "--engine", *more) for more in ((), ("--layers",)))
    layers = run("inspect", built, "--engine", "--json").json["engines"][0]["proof"]["layers"]
    missing = [layer["name"] for layer in layers if layer["name"] not in full.out]
    assert missing == []
    assert len(full.out.splitlines()) >= len(brief.out.splitlines()) + len(layers)


@rtx
@pytest.mark.usefixtures("no_gpu")
def test_json_is_one_object_with_shares_and_obstacles(run: Run, built: Path) -> None:
    (engine,) = run("inspect", built, "--engine", "--json").json["engines"]
    assert engine["path"] == ENGINE
    assert engine["runs_here"] is False
    assert engine["obstacles"][0]["of"] == "machine"
    assert engine["proof"]["source"] == "definition"
    assert engine["proof"]["as_asked"] is True
    assert engine["proof"]["share_of_macs"] == {"fp16": 1.0}
    assert sum(engine["proof"]["share_of_layers"].values()) == pytest.approx(1)
    assert engine["memory"]["weights_memory_bytes"] > 0
    assert engine["built_for"]["compiler"] == "tensorrt_rtx"


@rtx
@pytest.mark.usefixtures("no_gpu")
def test_a_convolution_in_a_wider_type_is_shown_and_ends_with_7(run: Run, built: Path) -> None:
    def widen(details: dict[str, Any]) -> None:
        (stem,) = (layer for layer in details["proof"]["weighted"] if layer["node"] == "stem.conv/Conv")
        stem["found"] = "fp32"

    change_details(built, widen)
    shown = run("inspect", built, "--engine")
    assert shown.code == 7
    assert "stem.conv/Conv (fp32, the graph says fp16)" in shown.err
    assert "1 are wider: stem.conv/Conv" in shown.out
    refusal = run("inspect", built, "--engine", "--json")
    assert refusal.code == 7
    assert "stem.conv/Conv (fp32" in json.dumps(refusal.json)  # one object, the error


@rtx
@pytest.mark.usefixtures("no_gpu")
def test_an_engine_without_a_proof_is_no_proven_engine(run: Run, built: Path) -> None:
    change_details(built, lambda details: details.pop("proof"))
    result = run("inspect", built, "--engine")
    assert result.code == 7
    assert "has no proof of its precision" in result.err
    assert "build it again" in result.err


@rtx
def test_the_digest_comes_first(run: Run, built: Path) -> None:
    plan = built / ENGINE
    plan.write_bytes(plan.read_bytes()[: plan.stat().st_size // 2])
    result = run("inspect", built, "--engine")
    assert result.code == 9
    assert ENGINE in result.err


@rtx
@pytest.mark.parametrize(
    ("at", "byte", "built_with", "reason"),
    [
        (
            24,
            b"\x63",
            "tensorrt_rtx 99.{rest}",
            "no, because its header says TensorRT-RTX 99.{rest}, the manifest {version}",
        ),
        (0, b"f", "tensorrt {version}", "no, because it is a plan of TensorRT, not of TensorRT-RTX"),
        (4, b"\x02", "tensorrt_rtx {version}", "no, because no GPU to run an engine on"),
    ],
    ids=["another version", "another compiler", "another serialization"],
)
@pytest.mark.usefixtures("no_gpu")
def test_what_a_plans_header_says_is_told(
    run: Run, built: Path, at: int, byte: bytes, built_with: str, reason: str
) -> None:
    """The version is the manifest's where the header is of a form that we do not know."""
    version = engines.load("tensorrt_rtx").__version__
    words = {"version": version, "rest": version.partition(".")[2]}
    plan = (built / ENGINE).read_bytes()
    replace_plan(built, plan[:at] + byte + plan[at + 1 :])
    result = run("inspect", built, "--engine")
    assert result.code == 0, result.err
    assert f"built with: {built_with.format(**words)}" in result.out
    assert reason.format(**words) in result.out


@rtx
def test_a_plan_that_is_not_whole_is_refused_though_its_digest_is_right(run: Run, built: Path) -> None:
    replace_plan(built, (built / ENGINE).read_bytes()[:1_000_000])
    result = run("inspect", built, "--engine")
    assert result.code == 7
    assert "its header says" in result.err


@rtx
@pytest.mark.gpu
def test_where_the_engine_runs_its_proof_is_made_again(run: Run, built: Path) -> None:
    (engine,) = run("inspect", built, "--engine", "--json").json["engines"]
    if engine["runs_here"]:
        assert engine["proof"]["source"] == "inspector"

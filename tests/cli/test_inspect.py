"""``skdeploy inspect`` of everything that it knows, and of what it does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from skdeploy.bundle.folder import load_bundle
from skdeploy.bundle.station_facts import EngineFacts
from skdeploy.core.files import digest_file
from tests.bundle.recorded import put_engine
from tests.cli.conftest import Run


def test_a_bundle_as_json_has_the_verdict_of_each_artifact(run: Run, bundle: Path) -> None:
    content = run("inspect", bundle, "--json").json
    assert content["verdict"]["state"] == "verified"
    parity = {row["path"]: row["parity"] and row["parity"]["verdict"] for row in content["artifacts"]}
    assert parity == {
        "weights.safetensors": None,
        "model.traced.onnx": "pass",
        "model.onnx": "pass",
        "model.fp16.onnx": "pass",
        "headroom.json": None,
        "parity.json": None,
    }


def test_a_graph_has_its_operators_and_the_modules_that_keep_fp32_can_name(run: Run, bundle: Path) -> None:
    content = run("inspect", bundle / "model.onnx", "--json").json
    assert content["opset"] == 19
    assert content["operators"]["Conv"] == 15  # stem; per unit 2 reduce/expand, 1 shortcut, 2 branches, 2 in the gate
    assert "stages.0.0.sk.branches.1.conv" in content["modules"]
    assert content["highest_rank"] == 4
    assert set(content["tensor_types"]) == {"FLOAT"}


def test_a_checkpoint_shows_its_tensors(run: Run, weights: Path) -> None:
    content = run("inspect", weights, "--json").json
    assert "stem.conv.weight: [8, 3, 3, 3]" in content["shapes"]
    assert content["tensors"] == len(content["shapes"])
    shown = run("inspect", weights)
    assert "stem.conv.weight: [8, 3, 3, 3]" in shown.out


@pytest.fixture
def engine(bundle: Path) -> Path:
    """A plan that the bundle's manifest knows. Its bytes are none: inspect does not open a plan."""
    put_engine(load_bundle(bundle), "engines/x.engine", b"plan", EngineFacts(compiler="tensorrt_rtx"), precision=None)
    return bundle / "engines/x.engine"


def test_an_engine_of_a_bundle_shows_what_the_manifest_records(run: Run, engine: Path) -> None:
    content = run("inspect", engine, "--json").json
    assert content["sha256"] == digest_file(engine)
    assert content["compiler"] == "tensorrt_rtx"


def test_long_and_nested_facts_are_left_to_json(run: Run, bundle: Path, engine: Path) -> None:
    shown = run("inspect", engine).out
    assert "[{" not in shown
    assert "None" not in shown
    modules = run("inspect", bundle / "model.onnx", "--json").json["modules"]
    out = run("inspect", bundle / "model.onnx").out
    assert [module in out for module in modules[:12]] == [True] * 12
    assert f"and {len(modules) - 12} more, with --json" in out


def test_an_altered_engine_is_refused(run: Run, engine: Path) -> None:
    engine.write_bytes(b"another")
    result = run("inspect", engine)
    assert result.code == 9
    assert "is not the file that the manifest describes" in result.err


def test_a_card_is_shown_once_it_is_valid_and_its_weights_are_those_it_names(
    run: Run, card: Path, weights: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    text = card.read_text(encoding="utf-8")
    shutil.copy(weights, tmp_path / "tiny.safetensors")
    digest = digest_file(weights)
    path.write_text(f'{text}\n[weights]\nfile = "tiny.safetensors"\nsha256 = "{digest}"\n', encoding="utf-8")
    result = run("inspect", path)
    assert result.code == 0, result.err
    assert f"tiny.safetensors, sha256 {digest[:12]}" in result.out
    assert run("inspect", path, "--json").json["name"] == "tiny"

    (tmp_path / "tiny.safetensors").write_bytes(b"other")
    assert "is not the file that the card names" in run("inspect", path).err
    path.write_text(text.replace("classes = ", "clases = "), encoding="utf-8")
    result = run("inspect", path)
    assert result.code == 2
    assert "did you mean 'classes'" in result.err


def test_a_card_of_a_network_of_ones_own_is_shown_with_what_is_assumed(run: Run, bundle: Path, tmp_path: Path) -> None:
    assert run("init", bundle / "model.onnx", "-o", tmp_path / "mine.toml").code == 0
    for verb in ("inspect", "models"):
        result = run(verb, tmp_path / "mine.toml")
        assert result.code == 0, result.err
        assert "the network is in an ONNX file" in result.out
        assert "(from ImageNet's defaults)" in result.out

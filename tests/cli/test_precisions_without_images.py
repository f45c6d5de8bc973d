"""Every precision that takes no calibration images, through every verb: the registry says which there are."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors.torch import load_file, save_file

from skdeploy.bundle.folder import load_bundle
from skdeploy.bundle.station_facts import EngineFacts
from skdeploy.core.precision import DECLINED, PRECISIONS, Precision, precision_named
from skdeploy.report.findings import read_findings
from skdeploy.report.line import export_command
from tests.cli.conftest import QUICK, Run

NARROW = [each for each in PRECISIONS.values() if not each.integer and each not in (Precision.FP32, Precision.FP16)]
Made = Callable[..., Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    """A bundle of each, once it is made."""
    return {}


@pytest.fixture(params=NARROW, ids=str)
def narrow(
    request: pytest.FixtureRequest,
    once: dict[Precision, Path],
    run: Run,
    card: Path,
    images: Path,
    weights: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Precision, Path]:
    """A precision, and a bundle of the tiny network in it, with an engine. Do not change it."""
    precision = request.param
    if precision not in once:
        pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")
        folder = tmp_path_factory.mktemp("narrow") / "bundle"
        flags = precision.flag.split()
        quick = ("--target", "tensorrt_rtx", "--exporter", "torchscript")
        done = run("export", card, *flags, *quick, "--images", images, "--weights", weights, "-o", folder)
        assert done.code == 0, done.err
        once[precision] = folder
    return precision, once[precision]


def test_the_line_makes_proves_records_and_builds_it(narrow: tuple[Precision, Path]) -> None:
    precision, folder = narrow
    bundle = load_bundle(folder)
    assert bundle.manifest.precision is precision
    assert bundle.manifest.verdict == "verified"
    last = bundle.graphs[-1]
    assert last.path == f"model.{precision}.onnx"
    assert last.precision is precision
    assert last.words == precision.words
    onnx.checker.check_model(onnx.load(bundle.check(last)), full_check=True)
    (engine,) = bundle.engines
    assert engine.path == f"engines/tensorrt_rtx-{precision}.engine"
    proof = engine.facts_as(EngineFacts).proof
    assert proof is not None
    assert not proof.wider
    assert not proof.unproven
    computes = PRECISIONS[precision.beside] if precision.weights_only else precision
    assert {layer.wanted for layer in proof.weighted} == {layer.found for layer in proof.weighted} == {computes}
    assert (proof.stored is not None) == precision.weights_only
    if proof.stored is not None:
        assert proof.stored.found == proof.stored.weights > 0


def test_every_verb_takes_it(
    narrow: tuple[Precision, Path], run: Run, images: Path, evaluation: Path, tmp_path: Path
) -> None:
    precision, made = narrow
    folder = Path(shutil.copytree(made, tmp_path / "copy"))

    verified = run("verify", folder, "--images", images, "--json")
    assert verified.code == 0, verified.err
    rows = {row["artifact"]: row for row in verified.json["parity"]["comparisons"]}
    assert rows[f"model.{precision}.onnx"]["precision"] == precision
    assert rows[f"model.{precision}.onnx"]["verdict"] == "pass"
    assert run("verify", folder, "--images", images, "--blame").code == 0

    evaluated = run("evaluate", folder, "--data", evaluation, "--json")
    assert evaluated.code == 0, evaluated.err
    assert {row["precision"] for row in evaluated.json["accuracies"]} == {"fp32", precision}
    compared = run("evaluate", folder, "--data", evaluation, "--max-drop", "50")
    assert compared.code == 0, compared.err

    planned = run("plan", folder, "--device", "orin-nano", "--json")
    assert planned.json["precision"] == precision
    floors = [floor["precision"] for floor in planned.json["devices"][0]["floors"]]
    assert floors == list(PRECISIONS)
    assert f"{precision}" in run("plan", folder, "--device", "orin-nano,rtx-4090").out

    timed = run("bench", folder, "--seconds", "0.1", "--json")
    assert timed.code == 0, timed.err
    assert f"model.{precision}.onnx" in timed.out

    assert run("report", folder, "-o", tmp_path / "report.html").code == 0
    assert precision.words in (tmp_path / "report.html").read_text(encoding="utf-8")

    inspected = run("inspect", "--engine", folder, "--json")
    assert inspected.code == 0, inspected.err
    (engine,) = inspected.json["engines"]
    assert engine["precision"] == precision
    assert (engine["proof"]["stored_int8"] is not None) == precision.weights_only
    assert run("inspect", folder).code == 0


def test_the_command_of_the_report_makes_the_same_graph_and_a_second_run_reuses_it(
    narrow: tuple[Precision, Path],
    run: Run,
    card: Path,
    weights: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    precision, folder = narrow
    words = shlex.split(export_command(read_findings(load_bundle(folder))) or "")
    assert precision.flag in " ".join(words)
    monkeypatch.chdir(tmp_path)
    given: list[Any] = [card if word == "tiny" else weights if word == weights.name else word for word in words[1:]]
    done = run(*given, "--target", "onnx", "--images", images, "-o", "again", "--json")
    assert done.code == 0, done.err
    graphs = load_bundle(tmp_path / "again").graphs
    assert graphs[-1].sha256 == load_bundle(folder).graphs[-1].sha256
    repeated = run(*given, "--target", "onnx", "--images", images, "-o", "again", "--json")
    assert all(row["reused"] for row in repeated.json["artifacts"])


def test_modules_are_kept_in_fp32_and_a_pattern_without_a_module_is_refused(
    narrow: tuple[Precision, Path], run: Run, card: Path, weights: Path, images: Path, tmp_path: Path
) -> None:
    precision, _ = narrow
    asked = ["export", card, *precision.flag.split(), *QUICK, "--images", images, "--weights", weights]
    done = run(*asked, "--keep-fp32", r"^stages\.0\.", "-o", tmp_path / "kept", "--json")
    assert done.code == 0, done.err
    graph = next(row for row in done.json["artifacts"] if row["path"] == f"model.{precision}.onnx")
    assert any(reason.startswith("--keep-fp32") for reason in graph["details"]["kept_fp32"].values())
    refused = run(*asked, "--keep-fp32", "nothing", "-o", tmp_path / "refused")
    assert refused.code == 2
    assert "--keep-fp32 'nothing' matches no module" in refused.err


def test_where_fp16_overflows_the_error_names_bf16_and_bf16_passes(
    run: Run, card: Path, weights: Path, images: Path, tmp_path: Path
) -> None:
    loud = tmp_path / "loud.safetensors"
    state = load_file(weights)
    for name in ("stem.bn.weight", "stem.bn.bias"):
        state[name] = state[name] * 1e5
    save_file(state, loud)
    asked = ["export", card, *QUICK, "--images", images, "--weights", loud]
    refused = run(*asked, "--fp16", "-o", tmp_path / "fp16")
    assert refused.code == 5
    assert "headroom to 65504" in refused.err
    assert "or export with --bf16" in " ".join(refused.err.split())
    done = run(*asked, "--bf16", "-o", tmp_path / "bf16", "--json")
    assert done.code == 0, done.err
    rows = {row["artifact"]: row["verdict"] for row in done.json["parity"]["comparisons"]}
    assert rows["model.bf16.onnx"] == "pass"


def test_a_device_without_bf16_is_named_before_anything_is_made(run: Run, card: Path, tmp_path: Path) -> None:
    """A T4 is of compute capability 7.5; BF16 needs 8.0, which every Orin has."""
    for flags in (("--for", "t4"), ("--compute-capability", "7.5")):
        done = run("export", card, "--bf16", *flags, "-o", tmp_path / "out")
        assert done.code == 2
        assert "has no BF16: it needs compute capability 8.0, and this is 7.5" in done.err
        assert not (tmp_path / "out").exists()
    assert run("export", card, "--bf16", "--for", "orin-nano", *QUICK, "-o", tmp_path / "orin").code == 0
    planned = run("plan", tmp_path / "orin", "--device", "t4,orin-nano", "--json").json["devices"]
    assert [bool(device["lacks"]) for device in planned] == [True, False]
    assert "bf16" not in [floor["precision"] for floor in planned[0]["floors"]]
    assert "none" in run("plan", tmp_path / "orin", "--device", "t4,orin-nano").out
    assert "T4 has no BF16" in run("plan", tmp_path / "orin", "--device", "t4").out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--weight-only int8 --int8", "--weight-only int8 and --int8 cannot be used together"),
        ("--half --weight-only int8", "--fp16 and --weight-only int8 cannot be used together"),
        ("--weight-only int8 --calib .", "--calib is for INT8, and this is an export to weight-only INT8"),
        ("--bf16 --fp16", "--fp16 and --bf16 cannot be used together"),
        ("--bf16 --int8-keep a", "--int8-keep is for weight-only INT8 or INT8, and this is an export to BF16"),
        ("--weight-only int3", "--weight-only int3 is not supported"),
        *((declined.flag, declined.why) for declined in DECLINED.values()),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(
    flags: str, message: str, run: Run, card: Path, tmp_path: Path
) -> None:
    done = run("export", card, *shlex.split(flags), "-o", tmp_path / "out")
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert not (tmp_path / "out").exists()


def test_a_declined_precision_is_explained_to_python_and_cards_too(card: Path, tmp_path: Path, run: Run) -> None:
    with pytest.raises(ValueError, match=r"15\.6 dB"):
        precision_named("fp8")
    strict = tmp_path / "strict.toml"
    table = "\n[tolerance.fp8]\nmax_rel_error = 1e-2\nmin_cosine = 0.99\nmin_sqnr_db = 20.0\n"
    strict.write_text(card.read_text(encoding="utf-8") + table, encoding="utf-8")
    done = run("export", strict, *QUICK, "-o", tmp_path / "out")
    assert done.code == 2
    assert "15.6 dB" in done.err


def test_a_file_may_ask_for_it(run: Run, card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "skdeploy.toml").write_text('[export]\nweight-only = "int8"\ncalib = "nowhere"\n', encoding="utf-8")
    done = run("export", card, *QUICK, "-o", "out", "--json")
    assert done.code == 0, done.err
    assert load_bundle(tmp_path / "out").manifest.precision == "weight-only-int8"
    assert json.loads((tmp_path / "out/manifest.json").read_text(encoding="utf-8"))["precision"] == "weight-only-int8"
